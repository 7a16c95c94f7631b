"""The student's own scores of chosen candidates, with gradient, from any RecBole model without editing it.

Three paths, the first that works on the first batch:
1. `loss`: the logits that the model has just computed for its full-softmax loss (no further work);
2. `full`: `full_sort_predict`, the score that evaluation ranks by, sharing the step's own forward pass;
3. `pairs`: one prediction per (row, candidate), for models that must see both together (DeepFM and its kind).
   There the candidates are few: the row's target and `kd_pair_candidates` others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from logging import getLogger
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType
from torch import Tensor, nn

from recbole_prmkd.dataset import ROW
from recbole_prmkd.errors import UserError
from recbole_prmkd.top_items import first_of

# Context models whose forward() is a probability already, not a logit.
_PROBABILITY_FORWARD = {"DCNV2", "KD_DAGFM"}
# Loss-based or closed-form models that RecBole does not train by gradient.
_UNTRAINED = {
    "Pop",
    "Random",
    "ItemKNN",
    "EASE",
    "SLIMElastic",
    "ADMMSLIM",
    "NCEPLRec",
    "XGBoost",
    "LightGBM",
}


class StudentScorer:
    """Scores [B, C] of a batch's positive rows for candidates, after the step's own loss was computed.

    Use: `with scorer.watching(): loss = calculate_loss(batch)`, then `scorer.prepare(batch)` and `scorer.scores`.
    """

    def __init__(self, model: AbstractRecommender, config: Config, dataset: Dataset) -> None:
        self.model, self.config, self.dataset = model, config, dataset
        self.path: str | None = None
        self._logits: Tensor | None = None
        self._scores: Tensor | None = None
        self._passes: list[tuple[tuple[Any, ...], Any]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what the loss computes: its logits, and the forward pass."""
        self._logits, self._passes = None, []
        criterion = getattr(self.model, "loss_fct", None)
        hook = criterion.register_forward_pre_hook(self._keep_logits) if isinstance(criterion, nn.Module) else None
        try:
            with self._shared_forward():
                yield
        finally:
            if hook is not None:
                hook.remove()

    def positives(self, interaction: Interaction) -> Tensor:
        """Places of the batch's positive rows, each training row once: [B]."""
        if ROW not in interaction:
            raise UserError(
                f"{type(self.model).__name__} is trained on whole users, not on (user, item) rows: "
                "such students are not distilled yet; use --kd=none or another model."
            )
        rows = interaction[ROW]
        places = torch.arange(len(rows), device=rows.device)
        label = self.config["LABEL_FIELD"]
        if label in interaction:
            places = places[interaction[label] > 0]
        # Several sampled negatives repeat a positive row: keep its first place.
        order = torch.argsort(rows[places], stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = rows[places[order[1:]]] != rows[places[order[:-1]]]
        return places[order[first]].sort().values

    @property
    def by_pairs(self) -> bool:
        """Whether candidates are scored pair by pair; known after the first `prepare`."""
        return self.path == "pairs"

    def prepare(self, interaction: Interaction) -> None:
        """Choose the path on the first batch, and say which."""
        if self.path is None:
            self.path = self._probe(interaction)
            getLogger().info(f"Student scores come from: {self.path}.")

    def scores(self, interaction: Interaction, places: Tensor, candidates: Tensor) -> Tensor:
        """The student's scores with gradient, [B, C].

        Args:
            interaction: the batch.
            places: [B] the rows of the batch to score.
            candidates: [C] for all rows, or [B, C]; where `by_pairs`, [B, C].
        """
        if self.by_pairs:
            return self._pairs(interaction, places, candidates)
        scores = self._all(interaction)[places]  # [B, n_items]
        return scores[:, candidates] if candidates.dim() == 1 else scores.gather(1, candidates)

    def first(self, interaction: Interaction, places: Tensor, number: int, excluded: Tensor) -> Tensor:
        """The items that the student ranks first for these rows, [B, number], without [B, P] `excluded`.

        Raises:
            UserError: a student that scores row by row, whose first items are not known.
        """
        if self.by_pairs:
            raise UserError(
                f"{type(self.model).__name__} scores items one by one, so what it ranks first is not known: use "
                "kd_candidates=batch or teacher_top."
            )
        return first_of(self._all(interaction)[places], number, excluded)

    def release(self) -> None:
        """Forget the step's tensors, and graph caches that would otherwise outlive it."""
        self._logits, self._scores, self._passes = None, None, []
        clear_graph_cache(self.model)

    def _all(self, interaction: Interaction) -> Tensor:
        """Scores of all items, [rows of the batch, n_items], computed once a step."""
        if self.path == "loss":
            assert self._logits is not None
            return self._logits
        if self._scores is None:
            self._scores = self._full(interaction)
        return self._scores

    def _probe(self, interaction: Interaction) -> str:
        n_items = self.dataset.item_num
        rows = len(interaction[ROW])
        if self._logits is not None and self._logits.shape == (rows, n_items):
            return "loss"
        try:
            if self._full(interaction).requires_grad:
                return "full"
        except NotImplementedError:
            return "pairs"
        raise UserError(
            f"{type(self.model).__name__} gives no score with a gradient: it cannot be distilled, use --kd=none."
        )

    def _full(self, interaction: Interaction) -> Tensor:
        clear_graph_cache(self.model)
        with self._shared_forward():
            return self.model.full_sort_predict(interaction).view(len(interaction[ROW]), -1)  # [rows, n_items]

    def _pairs(self, interaction: Interaction, places: Tensor, candidates: Tensor) -> Tensor:
        number, width = candidates.shape
        repeated = places.repeat_interleave(width)
        pairs = {name: interaction[name][repeated] for name in interaction.columns if name != ROW}
        items = candidates.reshape(-1)
        features = self.dataset.get_item_feature()
        for name in features.columns:
            pairs[name] = features[name].to(items.device)[items]
        pairs[self.config["ITEM_ID_FIELD"]] = items
        return self._pair_logits(Interaction(pairs)).view(number, width)

    def _pair_logits(self, pairs: Interaction) -> Tensor:
        model = self.model
        if self.config["MODEL_TYPE"] != ModelType.CONTEXT:
            return model.predict(pairs)
        output = model.forward(pairs).view(-1)
        return output.float().clamp(1e-6, 1 - 1e-6).logit() if type(model).__name__ in _PROBABILITY_FORWARD else output

    def _keep_logits(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].dim() == 2:
            self._logits = arguments[0]

    @contextmanager
    def _shared_forward(self) -> Iterator[None]:
        """`model.forward` with the same arguments is computed once per step (same dropout, no second pass)."""
        model, forward = self.model, self.model.forward

        def once(*arguments: Any, **named: Any) -> Any:
            key = (*arguments, *named.items())
            for known, output in self._passes:
                if len(known) == len(key) and all(a is b for a, b in zip(known, key, strict=True)):
                    return output
            output = forward(*arguments, **named)
            self._passes.append((key, output))
            return output

        had = model.__dict__.get("forward")
        model.forward = once
        try:
            yield
        finally:
            if had is None:
                del model.__dict__["forward"]
            else:
                model.forward = had


def clear_graph_cache(model: AbstractRecommender) -> None:
    """Null the `restore_*` tensors that graph models keep for evaluation, so that no later score is stale."""
    for name in vars(model):
        if name.startswith("restore_"):
            setattr(model, name, None)


def why_not_distilled(model_name: str, model_type: ModelType) -> str | None:
    """Why a model cannot be a student, or None."""
    if model_name in _UNTRAINED or model_type in {ModelType.TRADITIONAL, ModelType.DECISIONTREE}:
        return f"{model_name} is not trained by gradient, so there is nothing to distil into: use --kd=none"
    return None
