"""What is found out about a student on its first batch, by running it instead of by its name.

The cheaper family must give the logits of the loss, or the scores of `full_sort_predict`; else the next one is taken.
"""

from collections.abc import Mapping
from dataclasses import astuple
from logging import getLogger
from typing import Any

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.students.adapter import (
    Factorised,
    Family,
    FullRanking,
    LossLogits,
    PairScores,
    StudentAdapter,
    number_of_examples,
)
from recbole_prmkd.students.causal_check import alike
from recbole_prmkd.students.defaults import StudentDefaults, own_loss, own_step, student_defaults
from recbole_prmkd.students.layers import running_statistics_kept
from recbole_prmkd.students.traits import LOGITS
from recbole_prmkd.students.windows import WINDOW

_EXAMPLES, _ITEMS = 8, 512  # examples and items that the families are compared on

_SAME_NUMBERS = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Alias", "ToCopy")
_PRODUCTS = ("Addmm", "Mm", "Bmm", "Baddbmm")  # as autograd names them


def decide(student: StudentAdapter, interaction: Interaction) -> None:
    """Set the student's family, the scale of its scores, and `kd`, and log the choice.

    To be called after `rec_loss` of the first batch: what the loss has computed shows the family.

    Raises:
        UserError: the student gives no score with a gradient.
    """
    student.family = _family(student, interaction)
    step = own_step(student.model, student.traits, student.in_pairs)
    student.loss_kind = own_loss(student.config, interaction, student.traits)
    student.kd = student_defaults(step, student.loss_kind, student.traits, student.sequential, student.shares_forward)
    getLogger().info(
        f"Student scores come from: {student.family.name} ({scale_of_scores(student)}, {student.loss_kind} loss; "
        f"traits of {student.traits_from})."
    )


def described(student: StudentAdapter) -> dict[str, str]:
    """The choices of the first batch in words."""
    assert student.family is not None
    return {
        "traits": student.traits_from,
        "family": student.family.name,
        "scores": scale_of_scores(student),
        "loss": student.loss_kind,
    }


def probed_state(student: StudentAdapter) -> dict[str, Any] | None:
    """What the first batch has decided, for a training that goes on: to probe again may draw random numbers."""
    if student.family is None:
        return None
    return {
        "family": student.family.name,
        "ranks_by_logits": getattr(student.family, "ranks_by_logits", False),
        "shares_forward": student.shares_forward,
        "scores": scale_of_scores(student),
        "loss": student.loss_kind,
        "kd": list(astuple(student.kd)),
    }


def restore_probed(student: StudentAdapter, state: Mapping[str, Any]) -> None:
    """Put back what `probed_state` gave."""
    families = {family.name: family for family in (FullRanking, LossLogits, PairScores)}
    if state["family"] == Factorised.name:
        student.family = Factorised(student, state["ranks_by_logits"])
    else:
        student.family = families[state["family"]](student)
    student.shares_forward, student.loss_kind = state["shares_forward"], state["loss"]
    student.to_logits, student.kd = LOGITS[state["scores"]], StudentDefaults(*state["kd"])


def scale_of_scores(student: StudentAdapter) -> str:
    """What the model ranks by: `logits` or what logits are made from, a key of `LOGITS`."""
    named = student.traits.scores
    if named is not None and LOGITS[named] is student.to_logits:  # cosines are taken as they are, as logits are
        return named
    return next(name for name, made in LOGITS.items() if made is student.to_logits)


def _family(student: StudentAdapter, interaction: Interaction) -> Family:
    number = number_of_examples(interaction)
    if student.loss_logits is not None and student.loss_logits.shape == (number, student.dataset.item_num):
        student.shares_forward = student.sequential
        return _family_of_logits(student, interaction)
    if student.traits.in_pairs:
        return PairScores(student)
    # A few examples, in evaluation mode: dropout would make two forward passes differ.
    few = interaction if WINDOW in interaction else interaction[:_EXAMPLES]
    positions = torch.arange(min(number_of_examples(few), _EXAMPLES), device=student.config["device"])
    assert student.kept is not None
    training, outputs = student.model.training, student.kept.outputs[:]
    student.model.eval()
    try:
        full = student.full(few)
        if not full.requires_grad:
            raise UserError(
                f"{type(student.model).__name__} gives no score with a gradient: it cannot be distilled, use --kd=none."
            )
        full = _on_logit_scale(student, full)
        product = _is_product(student, full[positions], few, positions)
        student.shares_forward = student.sequential and _forward_is_shared(student, interaction, product)
        return Factorised(student) if product else FullRanking(student)
    except NotImplementedError:
        pairs = PairScores(student)
        items = torch.ones(len(positions), 2, dtype=torch.int64, device=positions.device)
        if student.traits.scores is None:
            _on_logit_scale(student, pairs.scores(few, positions, items))
        return pairs
    finally:
        student.model.train(training)
        student.kept.outputs = outputs


def _family_of_logits(student: StudentAdapter, interaction: Interaction) -> Family:
    """Where the loss has logits of all items: as a product where that is the same, else as they are."""
    assert student.loss_logits is not None and student.kept is not None
    positions = torch.arange(len(student.loss_logits), device=student.loss_logits.device)
    before = len(student.kept.outputs)
    # In training mode: the forward pass is shared, and so is its dropout.
    with torch.no_grad(), running_statistics_kept(student.model):
        product = _is_product(student, student.loss_logits, interaction, positions)
    if product and len(student.kept.outputs) == before:
        return Factorised(student, ranks_by_logits=True)
    return LossLogits(student)


def _on_logit_scale(student: StudentAdapter, scores: Tensor) -> Tensor:
    """The scores as logits; of a model without traits they are taken for probabilities where all lie in [0, 1].

    Not where a product makes them: an untrained network's scores are near its last bias, which may lie there.
    """
    if student.traits.scores is not None:
        return scores
    inside = bool(((scores >= 0) & (scores <= 1)).all()) and bool((scores > 0).any())
    student.to_logits = LOGITS["probabilities" if inside and not _is_made_by_a_product(scores) else "logits"]
    return scores if student.to_logits is None else student.to_logits(scores)


def _is_made_by_a_product(scores: Tensor) -> bool:
    """Whether a linear layer or a matrix product gives the scores, apart from their shape and precision."""
    operation = scores.grad_fn
    while operation is not None and operation.name().startswith(_SAME_NUMBERS):
        operation = operation.next_functions[0][0]
    return operation is not None and operation.name().startswith(_PRODUCTS)


def _forward_is_shared(student: StudentAdapter, interaction: Interaction, product: bool) -> bool:
    """Whether the model calls its `forward` for its scores as it did for its loss; BERT4Rec does not."""
    assert student.kept is not None
    before = len(student.kept.outputs)
    with torch.no_grad():
        if product:
            first = torch.zeros(1, dtype=torch.long, device=student.config["device"])
            everyone = torch.arange(number_of_examples(interaction), device=first.device)
            Factorised(student).scores(interaction, everyone, first)
        else:
            student.full(interaction)
    return len(student.kept.outputs) == before


def _is_product(student: StudentAdapter, scores: Tensor, interaction: Interaction, positions: Tensor) -> bool:
    """Whether `Factorised` gives these scores [B, n_items], for common candidates and for each example's own."""
    step = max(2, student.dataset.item_num // _ITEMS)
    items = torch.arange(1, student.dataset.item_num, step, device=scores.device)
    for candidates in (items, items[:_EXAMPLES].expand(len(positions), -1)):
        try:
            ours = Factorised(student).scores(interaction, positions, candidates)
        except Exception:  # whatever a foreign model raises where a future step needs the scores of all items
            return False
        wanted = scores[:, items[: ours.shape[-1]]]
        if ours.shape != wanted.shape or not alike(ours, wanted):
            return False
    return True
