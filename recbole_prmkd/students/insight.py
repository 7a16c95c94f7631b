"""What KD methods of other papers want of a student beside its scores: its vectors, and its scores anew."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.students.adapter import CandidateColumns, Factorised, FullRanking, LossLogits, StudentAdapter
from recbole_prmkd.students.layers import running_statistics_kept


def vectors(
    student: StudentAdapter, interaction: Interaction, positions: Tensor, items: Tensor
) -> tuple[Tensor, Tensor]:
    """What the score is the product of: vectors of the examples [B, D] and of these items [C, D], with gradient.

    Args:
        interaction: the batch.
        positions: [B] of the examples in it.
        items: [C] ids.
    Raises:
        UserError: the student's score is no such product.
    """
    if not isinstance(student.family, Factorised):
        raise UserError(
            f"{type(student.model).__name__} has no vectors of users and items whose product is its score: use a "
            "kd_loss that compares scores (kl)."
        )
    interaction, positions = student.subset(interaction, positions)
    kept = nullcontext() if student.shares_forward else running_statistics_kept(student.model)
    with kept, CandidateColumns(items, student.dataset.item_num) as product:
        student.full(interaction)
    assert product.factors is not None, "a factorised student ranks by a product"
    users, chosen = product.factors
    return users.reshape(-1, users.shape[-1])[positions], chosen


@contextmanager
def anew(student: StudentAdapter) -> Iterator[None]:
    """Inside, `scores` are computed without gradient and dropout, and nothing of the step is taken or kept."""
    assert student.kept is not None and student.family is not None
    kept, training, family = student.kept.outputs, student.model.training, student.family
    student.kept.outputs = []
    student.family = FullRanking(student) if isinstance(family, LossLogits) else type(family)(student)
    student.model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        student.kept.outputs, student.family = kept, family
        student.model.train(training)
