"""The student's own scores of chosen candidates, with gradient, from any RecBole model without editing it.

Four paths, the first that works on the first batch:
1. `factorised`: the users x items product of `full_sort_predict`, with the candidates' items alone;
2. `loss`: the logits that the model has just computed for its full-softmax loss, where they are no such product;
3. `full`: `full_sort_predict`, the score that evaluation ranks by, for all items;
4. `pairs`: one prediction per (row, candidate), for models that must see both together (DeepFM and its kind).
   There the candidates are few: the row's target and `kd_pair_candidates` others.
All share the step's own forward pass where the model makes the same one again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from logging import getLogger
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType
from torch import Tensor, nn

from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.distil.candidates import Pairs
from recbole_prmkd.distil.top_items import first_of
from recbole_prmkd.errors import UserError
from recbole_prmkd.students.defaults import StudentDefaults, student_defaults
from recbole_prmkd.students.factorised import candidates_alone
from recbole_prmkd.students.logits import as_logits
from recbole_prmkd.students.positives import UserExamples, positive_examples
from recbole_prmkd.students.windows import WINDOW, alike

# Models whose full_sort_predict runs user by user, or holds rows x items x width at once.
_BY_PAIRS = {"FISM", "NAIS", "TransRec", "GCMC", "KGCN", "KGNNLS", "RippleNet"}
_PROBED, _PROBED_ITEMS = 8, 512  # rows and items that the paths are compared on


class StudentAdapter:
    """Scores [B, C] of a batch's positive rows for candidates, after the step's own loss was computed.

    Use: `with scorer.watching(): loss = calculate_loss(batch)`, then `scorer.prepare(batch)` and `scorer.scores`.
    """

    def __init__(self, model: AbstractRecommender, config: Config, dataset: Dataset, train: Examples) -> None:
        """dataset: of the training split, for items' features; train: its rows."""
        self.model, self.config, self.dataset, self.train = model, config, dataset, train
        self.path: str | None = None
        # Known with the path:
        self.student_defaults = StudentDefaults()
        self.shares_pass = False  # whether each row's scores come from the loss's own forward pass
        self._user_rows: UserExamples | None = None
        self._logits: Tensor | None = None
        self._logits_rank = False  # whether they are the scores of all items
        self._scores: Tensor | None = None
        self._passes: list[tuple[tuple[Any, ...], Any]] = []

    @property
    def settled(self) -> dict[str, Any] | None:
        """What the first batch has settled, for a training that goes on: to probe again may draw random numbers."""
        if self.path is None:
            return None
        known = {"path": self.path, "shares_pass": self.shares_pass, "logits_rank": self._logits_rank}
        return {**known, "student_defaults": list(astuple(self.student_defaults))}

    @settled.setter
    def settled(self, known: dict[str, Any]) -> None:
        self.path, self.shares_pass, self._logits_rank = (known[k] for k in ("path", "shares_pass", "logits_rank"))
        self.student_defaults = StudentDefaults(*known["student_defaults"])

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what the loss computes: its logits, and the forward pass."""
        self._logits, self._passes = None, []
        criterion = getattr(self.model, "loss_fct", None)
        hook = criterion.register_forward_pre_hook(self._keep_logits) if isinstance(criterion, nn.Module) else None
        try:
            with self._kept_forward():
                yield
        finally:
            if hook is not None:
                hook.remove()

    def positives(self, interaction: Interaction, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Places of the batch's positive rows and their numbers, each training row once: [B] and [B].

        generator: draws a row of each user for students that are trained on whole users.
        """
        if EXAMPLE in interaction:
            return positive_examples(interaction, self.config["LABEL_FIELD"])
        if self._user_rows is None:
            self._user_rows = UserExamples(self.train)
        return self._user_rows.draw(interaction[self.config["USER_ID_FIELD"]], generator)

    @property
    def scores_pairs(self) -> bool:
        """Whether candidates are scored pair by pair; known after the first `prepare`."""
        return self.path == "pairs"

    def prepare(self, interaction: Interaction) -> None:
        """Choose the path on the first batch, and say which."""
        if self.path is None:
            self.path = self._probe(interaction)
            self.student_defaults = student_defaults(
                self.model, self.config, interaction, self.scores_pairs, self.shares_pass
            )
            getLogger().info(f"Student scores come from: {self.path}.")

    def scores(self, interaction: Interaction, positions: Tensor, candidates: Tensor) -> Tensor:
        """The student's scores with gradient, [B, C].

        Args:
            interaction: the batch.
            positions: [B] the rows of the batch to score.
            candidates: [C] for all rows, or [B, C]; where `scores_pairs`, [B, C].
        """
        if self.scores_pairs:
            return self._pairs(interaction, positions, candidates)
        if self.path == "factorised":
            return self._factorised(interaction, positions, candidates)
        scores = self._all(interaction, positions)  # [B, n_items]
        return scores[:, candidates] if candidates.dim() == 1 else scores.gather(1, candidates)

    def first(self, interaction: Interaction, positions: Tensor, number: int, excluded: Pairs) -> Tensor:
        """The items that the student ranks first for these rows, [B, number], without `excluded`.

        Raises:
            UserError: a student that scores row by row, whose first items are not known.
        """
        if self.scores_pairs:
            raise UserError(
                f"{type(self.model).__name__} scores items one by one, so what it ranks first is not known: use "
                "kd_candidates=batch or teacher_top."
            )
        return first_of(self._all(interaction, positions), number, excluded)

    def release(self) -> None:
        """Forget the step's tensors, and graph caches that would otherwise outlive it."""
        self._logits, self._scores, self._passes = None, None, []
        clear_graph_cache(self.model)

    def _probe(self, interaction: Interaction) -> str:
        sequential = self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        if self._logits is not None and self._logits.shape == (_rows(interaction), self.dataset.item_num):
            self._logits_rank, self.shares_pass = True, sequential
            positions = torch.arange(_rows(interaction), device=self._logits.device)
            made = len(self._passes)
            with torch.no_grad():  # in training mode: the forward pass is shared, and so is its dropout
                product = self._is_product(self._logits, interaction, positions)
            return "factorised" if product and len(self._passes) == made else "loss"
        if type(self.model).__name__ in _BY_PAIRS:
            return "pairs"
        # A few rows, in evaluation mode: dropout would make two passes differ.
        few = interaction if WINDOW in interaction else interaction[:_PROBED]
        positions = torch.arange(min(_rows(few), _PROBED), device=self.config["device"])
        training, passes = self.model.training, self._passes[:]
        self.model.eval()
        try:
            full = self._full(few)
            if not full.requires_grad:
                raise UserError(
                    f"{type(self.model).__name__} gives no score with a gradient: it cannot be distilled, use "
                    "--kd=none."
                )
            product = self._is_product(full[positions], few, positions)
            self.shares_pass = sequential and self._pass_is_shared(interaction, product)
            return "factorised" if product else "full"
        except NotImplementedError:
            return "pairs"
        finally:
            self.model.train(training)
            self._passes = passes

    def _pass_is_shared(self, interaction: Interaction, product: bool) -> bool:
        """Whether the model asks its `forward` the same for its scores as it did for its loss; BERT4Rec does not."""
        made = len(self._passes)
        with torch.no_grad():
            if product:
                first = torch.zeros(1, dtype=torch.long, device=self.config["device"])
                self._factorised(interaction, torch.arange(_rows(interaction), device=first.device), first)
            else:
                self._full(interaction)
        return len(self._passes) == made

    def _is_product(self, scores: Tensor, interaction: Interaction, positions: Tensor) -> bool:
        """Whether the factorised path gives these rows' scores [B, n_items], for common and for own candidates."""
        step = max(2, self.dataset.item_num // _PROBED_ITEMS)
        items = torch.arange(1, self.dataset.item_num, step, device=scores.device)
        for candidates in (items, items[:_PROBED].expand(len(positions), -1)):
            try:
                ours = self._factorised(interaction, positions, candidates)
            except Exception:  # whatever a foreign model raises where a later step needs the scores of all items
                return False
            wanted = scores[:, items[: ours.shape[-1]]]
            if ours.shape != wanted.shape or not alike(ours, wanted):
                return False
        return True

    def _all(self, interaction: Interaction, positions: Tensor) -> Tensor:
        """Scores of the rows at `positions` for all items, [B, n_items]; computed once a step."""
        if self._logits_rank:
            assert self._logits is not None
            return self._logits[positions]
        if self._scores is None:
            interaction, positions = self._alone(interaction, positions)
            self._scores = self._full(interaction)[positions]
        return self._scores

    def _full(self, interaction: Interaction) -> Tensor:
        """`full_sort_predict` as logits, [rows, width]: all items, or as many as the product was made with."""
        clear_graph_cache(self.model)
        with self._kept_forward(shared=True):
            scores = self.model.full_sort_predict(interaction)
        return as_logits(self.model, scores.view(_rows(interaction), -1))

    def _factorised(self, interaction: Interaction, positions: Tensor, items: Tensor) -> Tensor:
        """Scores of the rows at `positions` for items [C], or [B, C] of each row; [B, C]."""
        interaction, positions = self._alone(interaction, positions)
        if items.dim() == 2 and len(positions) < _rows(interaction):
            items = items.new_zeros(_rows(interaction), items.shape[1]).index_copy(0, positions, items)
        with candidates_alone(items, self.dataset.item_num):
            return self._full(interaction)[positions]

    def _alone(self, interaction: Interaction, positions: Tensor) -> tuple[Interaction, Tensor]:
        """The rows at `positions` as a batch of their own, where the others' forward pass is not there already."""
        if self.shares_pass or WINDOW in interaction or len(positions) == _rows(interaction):
            return interaction, positions
        return Interaction(_of_rows(interaction, positions)), torch.arange(len(positions), device=positions.device)

    def _pairs(self, interaction: Interaction, positions: Tensor, candidates: Tensor) -> Tensor:
        number, width = candidates.shape
        repeated = positions.repeat_interleave(width)
        pairs = _of_rows(interaction, repeated)
        items = candidates.reshape(-1)
        features = self.dataset.get_item_feature()
        for name in features.columns:
            pairs[name] = features[name].to(items.device)[items]
        pairs[self.config["ITEM_ID_FIELD"]] = items
        return self._pair_logits(Interaction(pairs)).view(number, width)

    def _pair_logits(self, pairs: Interaction) -> Tensor:
        context = self.config["MODEL_TYPE"] == ModelType.CONTEXT
        scores = self.model.forward(pairs) if context else self.model.predict(pairs)
        return as_logits(self.model, scores.view(-1))

    def _keep_logits(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].dim() == 2:
            self._logits = arguments[0]

    @contextmanager
    def _kept_forward(self, shared: bool = False) -> Iterator[None]:
        """What `model.forward` gives is kept for the step; `shared`: and given again for the same arguments.

        The loss itself never shares: a model may call `forward` twice for two views by two dropouts (FEARec).
        """
        model, forward = self.model, self.model.forward

        def kept(*arguments: Any, **named: Any) -> Any:
            key = (*arguments, *named.items())
            for known, output in self._passes if shared else ():
                if len(known) == len(key) and all(a is b for a, b in zip(known, key, strict=True)):
                    return output
            output = forward(*arguments, **named)
            self._passes.append((key, output))
            return output

        had = model.__dict__.get("forward")
        model.forward = kept
        try:
            yield
        finally:
            if had is None:
                del model.__dict__["forward"]
            else:
                model.forward = had


def _rows(interaction: Interaction) -> int:
    """Rows of a batch: in one of windows there are more of them than windows."""
    return len(interaction[EXAMPLE]) if EXAMPLE in interaction else len(interaction)


def _of_rows(interaction: Interaction, positions: Tensor) -> dict[str, Tensor]:
    """The columns of these rows; a knowledge model's batch holds triples beside them, in a number of their own."""
    columns = {name: interaction[name] for name in interaction.columns if name != EXAMPLE}
    return {name: column[positions] for name, column in columns.items() if len(column) == _rows(interaction)}


def clear_graph_cache(model: AbstractRecommender) -> None:
    """Null the tensors that graph models (and DMF) keep for evaluation, so that no later score is stale."""
    for name in vars(model):
        if name.startswith("restore_") or name == "i_embedding":
            setattr(model, name, None)
