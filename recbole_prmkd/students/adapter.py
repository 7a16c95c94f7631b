"""The student as the method sees it: its own loss, and its scores of chosen candidates, from any RecBole model.

`StudentAdapter` owns everything that is done to the model: what it replaces is listed in `attached` and put back when
training ends. The scores come from one of four families, chosen on the first batch (`students.probe`):

1. `Factorised`: the users x items product of `full_sort_predict`, with the candidates' columns only;
2. `LossLogits`: the logits that the model has just computed for its full-softmax loss;
3. `FullRanking`: `full_sort_predict`, the score that evaluation ranks by, for all items;
4. `PairScores`: one prediction per (example, candidate), for models that must see both together (DeepFM and its kind).

All share the step's own forward pass where the model makes the same one again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.errors import UserError
from recbole_prmkd.students.defaults import StudentDefaults
from recbole_prmkd.students.layers import running_statistics_kept, scaled_dropout
from recbole_prmkd.students.positives import UserExamples, positive_examples
from recbole_prmkd.students.traits import to_logits, traits_of
from recbole_prmkd.students.windows import WINDOW, WindowedModel, replaced

Loss = Callable[..., Any]  # batch -> the model's own loss


class StudentAdapter:
    """Own loss and scores of a RecBole model in training.

    Use: `adapter.rec_loss(model.calculate_loss, batch)`, on the first batch `probe.decide(adapter,
    batch)`, then `adapter.scores(...)` and `adapter.release()`, all inside `attached`.

    Attributes:
        traits, traits_from: what the model's class is known for, and from which class.
        family: how candidates are scored; None before the first batch.
        kd: strength of the KD loss for this student; decided with the family.
        shares_forward: whether each example's scores come from the loss's own forward pass.
        loss_kind: `full-softmax`, `pairwise` or `pointwise`; decided with the family.
    """

    def __init__(self, model: AbstractRecommender, config: Config, dataset: Dataset, train: Examples) -> None:
        """dataset: of the training split, for items' features; train: its examples."""
        self.model, self.config, self.dataset, self.train = model, config, dataset, train
        self.traits, self.traits_from = traits_of(type(model))
        self.to_logits = to_logits(model, self.traits)
        self.sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.family: Family | None = None
        self.kd = StudentDefaults()
        self.loss_kind = ""
        self.shares_forward = False
        self.loss_logits: Tensor | None = None  # [B, n_items] of the step, where the loss computed them
        self.kept: KeptForward | None = None
        self._user_examples: UserExamples | None = None

    @contextmanager
    def attached(self, windows: WindowedModel | None = None, dropout: float = 1.0) -> Iterator[None]:
        """Inside, the model is prepared for training; afterwards it is as it was.

        Replaced on the instance: `forward`, which keeps what it gives within a step, and with `windows` the methods
        that `WindowedModel.methods` names. So a call from the outside in is

            forward: KeptForward -> WindowedModel.forward -> the model's own
            calculate_loss, full_sort_predict, gather_indexes: WindowedModel's -> the model's own

        Dropout probabilities are multiplied by `dropout`.
        """
        methods = windows.methods() if windows is not None else {}
        self.kept = KeptForward(methods.get("forward", self.model.forward))
        try:
            with replaced(self.model, {**methods, "forward": self.kept}), scaled_dropout(self.model, dropout):
                yield
        finally:
            self.kept = None

    def rec_loss(self, loss: Loss, interaction: Interaction) -> Any:
        """The model's own loss of the batch, a tensor or several; what it computes on the way is kept for `scores`."""
        self.loss_logits = None
        criterion = getattr(self.model, "loss_fct", None)
        hook = criterion.register_forward_pre_hook(self._keep_logits) if isinstance(criterion, nn.Module) else None
        assert self.kept is not None, "rec_loss is computed inside `attached`"
        try:
            with self.kept.keeping():
                return loss(interaction)
        finally:
            if hook is not None:
                hook.remove()

    def positives(self, interaction: Interaction, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions of the batch's positives and their training examples, each example once: [B] and [B], on the CPU.

        generator: samples an example of each user for students that are trained on whole users.
        """
        if WINDOW in interaction:  # each example once, all of them positives
            examples = interaction[EXAMPLE].cpu()
            return torch.arange(len(examples)), examples
        if EXAMPLE in interaction:
            return positive_examples(interaction, self.config["LABEL_FIELD"])
        if self._user_examples is None:
            self._user_examples = UserExamples(self.train)
        return self._user_examples.sample(interaction[self.config["USER_ID_FIELD"]], generator)

    @property
    def in_pairs(self) -> bool:
        """Whether candidates are scored pair by pair; decided on the first batch."""
        return isinstance(self.family, PairScores)

    def scores(self, interaction: Interaction, positions: Tensor, candidates: Tensor) -> Tensor:
        """The student's scores with gradient, on the scale of logits, [B, C].

        Args:
            interaction: the batch.
            positions: [B] the examples of the batch to score.
            candidates: [C] for all examples, or [B, C]; where `in_pairs`, [B, C].
        """
        assert self.family is not None, "probe.decide comes first"
        # A forward pass beside the loss's own leaves BatchNorm's running statistics as they are.
        with nullcontext() if self.shares_forward else running_statistics_kept(self.model):
            return self.family.scores(interaction, positions, candidates)

    def all_scores(self, interaction: Interaction, positions: Tensor) -> Tensor:
        """Scores of all items for these examples, [B, n_items].

        Raises:
            UserError: a student that scores pair by pair.
        """
        if not isinstance(self.family, FullRanking):
            raise UserError(
                f"{type(self.model).__name__} scores items one by one, so what it ranks first cannot be found: "
                "use kd_candidates=batch or teacher_top."
            )
        with nullcontext() if self.shares_forward else running_statistics_kept(self.model):
            return self.family.all_scores(interaction, positions)

    def release(self) -> None:
        """Forget the step's tensors, and graph caches that would otherwise outlive it."""
        self.loss_logits = None
        if self.kept is not None:
            self.kept.forget()
        if self.family is not None:
            self.family.forget()
        clear_graph_cache(self.model)

    def full(self, interaction: Interaction) -> Tensor:
        """`full_sort_predict` as logits, [examples, width]: all items, or as many as the product was computed for."""
        clear_graph_cache(self.model)
        with self.kept.reusing() if self.kept is not None else nullcontext():
            scores = self.model.full_sort_predict(interaction)
        scores = scores.view(number_of_examples(interaction), -1)
        return scores if self.to_logits is None else self.to_logits(scores)

    def subset(self, interaction: Interaction, positions: Tensor) -> tuple[Interaction, Tensor]:
        """The examples at `positions` as a batch of their own, unless the whole batch's forward pass is there."""
        if self.shares_forward or WINDOW in interaction or len(positions) == number_of_examples(interaction):
            return interaction, positions
        columns = of_examples(interaction, positions)
        return Interaction(columns), torch.arange(len(positions), device=positions.device)

    def _keep_logits(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].dim() == 2:
            self.loss_logits = arguments[0]


class KeptForward:
    """Stands in for `model.forward` while a student is attached: keeps a step's outputs by their arguments."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._keep = self._reuse = False
        self.outputs: list[tuple[tuple[Any, ...], Any]] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self._keep:
            return self._forward(*arguments, **named)
        key = (*arguments, *named.items())
        for kept, output in self.outputs if self._reuse else ():
            if len(kept) == len(key) and all(a is b for a, b in zip(kept, key, strict=True)):
                return output
        output = self._forward(*arguments, **named)
        self.outputs.append((key, output))
        return output

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Inside, outputs are kept but not given again: a loss may want two views by two dropouts (FEARec)."""
        self.outputs, self._keep = [], True
        try:
            yield
        finally:
            self._keep = False

    @contextmanager
    def reusing(self) -> Iterator[None]:
        """Inside, the same arguments give the kept output again."""
        self._keep = self._reuse = True
        try:
            yield
        finally:
            self._keep = self._reuse = False

    def forget(self) -> None:
        """Release the kept outputs."""
        self.outputs = []


class Family:
    """How candidates are scored. `scores` is `StudentAdapter.scores`; `forget` releases what belongs to the step."""

    name = ""

    def __init__(self, student: StudentAdapter) -> None:
        self.student = student

    def scores(self, interaction: Interaction, positions: Tensor, candidates: Tensor) -> Tensor:
        """[B, C]."""
        raise NotImplementedError

    def forget(self) -> None:
        """Nothing is kept here."""


class FullRanking(Family):
    """`full_sort_predict` for all items, computed once a step."""

    name = "full"
    _all: Tensor | None = None

    def scores(self, interaction: Interaction, positions: Tensor, candidates: Tensor) -> Tensor:
        """[B, C]."""
        scores = self.all_scores(interaction, positions)  # [B, n_items]
        return scores[:, candidates] if candidates.dim() == 1 else scores.gather(1, candidates)

    def all_scores(self, interaction: Interaction, positions: Tensor) -> Tensor:
        """[B, n_items]; within one step the positions are the same."""
        if self._all is None:
            interaction, positions = self.student.subset(interaction, positions)
            self._all = self.student.full(interaction)[positions]
        return self._all

    def forget(self) -> None:
        """The step's scores."""
        self._all = None


class LossLogits(FullRanking):
    """The logits that the loss has just computed, where they are no product with the items alone."""

    name = "loss"

    def all_scores(self, interaction: Interaction, positions: Tensor) -> Tensor:
        """[B, n_items]."""
        assert self.student.loss_logits is not None
        return self.student.loss_logits[positions]


class Factorised(FullRanking):
    """The product of `full_sort_predict` with the candidates' columns only: no cost in the catalogue's size.

    ranks_by_logits: the loss has computed the scores of all items, which `all_scores` then takes.
    """

    name = "factorised"

    def __init__(self, student: StudentAdapter, ranks_by_logits: bool = False) -> None:
        super().__init__(student)
        self.ranks_by_logits = ranks_by_logits

    def scores(self, interaction: Interaction, positions: Tensor, candidates: Tensor) -> Tensor:
        """[B, C]."""
        student = self.student
        interaction, positions = student.subset(interaction, positions)
        number = number_of_examples(interaction)
        if candidates.dim() == 2 and len(positions) < number:
            empty = candidates.new_zeros(number, candidates.shape[1])
            candidates = empty.index_copy(0, positions, candidates)
        with CandidateColumns(candidates, student.dataset.item_num):
            return student.full(interaction)[positions]

    def all_scores(self, interaction: Interaction, positions: Tensor) -> Tensor:
        """[B, n_items]."""
        if self.ranks_by_logits:
            assert self.student.loss_logits is not None
            return self.student.loss_logits[positions]
        return super().all_scores(interaction, positions)


class PairScores(Family):
    """One prediction per (example, candidate)."""

    name = "pairs"

    def scores(self, interaction: Interaction, positions: Tensor, candidates: Tensor) -> Tensor:
        """[B, C] from candidates [B, C]."""
        student = self.student
        number, width = candidates.shape
        pairs = of_examples(interaction, positions.repeat_interleave(width))
        items = candidates.reshape(-1)  # [B * C]
        features = student.dataset.get_item_feature()
        for name in features.columns:
            pairs[name] = features[name].to(items.device)[items]
        pairs[student.config["ITEM_ID_FIELD"]] = items
        context = student.config["MODEL_TYPE"] == ModelType.CONTEXT
        predict = student.model.forward if context else student.model.predict
        scores = predict(Interaction(pairs)).view(-1)
        return (scores if student.to_logits is None else student.to_logits(scores)).view(number, width)


class CandidateColumns(TorchFunctionMode):
    """Inside, products with a table of all items are computed for these items alone.

    Most models rank by one product, users [B, D] x items [D, n_items]. A model that does not follow that form gives
    another width or an error, which the probe of the first batch sees.
    """

    def __init__(self, candidates: Tensor, n_items: int) -> None:
        """candidates: item ids, [C] for all users or [B, C] of each."""
        super().__init__()
        self.candidates, self.n_items = candidates, n_items
        self.factors: tuple[Tensor, Tensor] | None = None  # of the newest product: users and the chosen items

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("matmul", "mm", "__matmul__") and len(args) == 2 and self._is_table(args[1], 1):
            return self._product(args[0], args[1].transpose(0, 1))
        if name == "linear" and len(args) >= 2 and self._is_table(args[1], 0):
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            product = self._product(args[0], args[1])
            return product if bias is None else product + bias[self.candidates].to(product.dtype)  # as AMP's own linear
        return func(*args, **(kwargs or {}))

    def _product(self, users: Tensor, items: Tensor) -> Tensor:
        """[B, C] from users [B, D] and all items [n_items, D]; [B, 1, C] from [B, 1, D]."""
        # Rows of the table itself: columns of its transpose would be gathered one number at a time.
        chosen = items[self.candidates]  # [C, D] or [B, C, D]
        self.factors = users, chosen
        if chosen.dim() == 2:
            return users @ chosen.transpose(0, 1)
        if users.dim() == 3:
            return torch.bmm(users, chosen.transpose(1, 2))
        return torch.bmm(chosen, users.unsqueeze(-1)).squeeze(-1)

    def _is_table(self, value: Any, items_axis: int) -> bool:
        return isinstance(value, Tensor) and value.dim() == 2 and value.shape[items_axis] == self.n_items


def number_of_examples(interaction: Interaction) -> int:
    """Examples of a batch; a batch of windows holds more of them than windows."""
    return len(interaction[EXAMPLE]) if EXAMPLE in interaction else len(interaction)


def of_examples(interaction: Interaction, positions: Tensor) -> dict[str, Tensor]:
    """The columns of these examples. A knowledge model's batch holds triples beside them, which are left out."""
    number = number_of_examples(interaction)
    columns = {name: interaction[name] for name in interaction.columns if name != EXAMPLE}
    return {name: column[positions] for name, column in columns.items() if len(column) == number}


def clear_graph_cache(model: AbstractRecommender) -> None:
    """Null the tensors that graph models (and DMF) keep for evaluation, so that no future score is stale."""
    for name in vars(model):
        if name.startswith("restore_") or name == "i_embedding":
            setattr(model, name, None)
