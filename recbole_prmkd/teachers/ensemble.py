"""The teachers served together, with no student: what distillation would save, and the bound it is held against.

An item's score is the mean, over the teachers that cover the user's history, of softmax(cosine / temperature) over all
items, each at its own temperature. With `kd_fusion=product` it is the mean of the logarithms, over the teachers that
cover the item too. What `kd_teacher_check=weigh` has found weighs the teachers; with `kd_confidence=gate` the gate
does. Our choice.

It ranks as a teacher does, with histories from the teachers' view of the data. Of the model that `--model` names only
the kind counts: for all but sequential models the ranking leaves a user's earlier items out, as RecBole's does.
"""

from collections.abc import Iterable, Sequence

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType, ModelType
from torch import Tensor, nn

from recbole_prmkd.data.split import Split
from recbole_prmkd.results.schema import GroupResult, StudentResult
from recbole_prmkd.teacher_cache.gate import profile, relative
from recbole_prmkd.teacher_cache.scores import Trust
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.fit import FittedTeacher, rankings
from recbole_prmkd.teachers.trust import PRODUCT

ENSEMBLE = "ensemble"  # the value of kd: nothing is trained
_AT_ONCE = 1 << 21  # teachers x examples x items that a gate weighs at a time: each has 17 features and more


class Ensemble(SequentialRecommender):
    """Frozen teachers as one RecBole model that only scores."""

    input_type = InputType.POINTWISE

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        teachers: Sequence[FittedTeacher],
        trust: Trust,
        product: bool,
        popularity: Tensor | None = None,
    ) -> None:
        """Frozen teachers together.

        Args:
            config, dataset: those of the teacher with the greatest maximum length.
            product: of the scores, not a sum.
            popularity: [n_items] training examples of each item, for a gate.
        """
        super().__init__(config, dataset)
        self.trust, self.product, self.popularity = trust, product, popularity
        self.teachers = nn.ModuleList(teacher.model for teacher in teachers)
        self.parts = [(teacher.model, teacher.config["MAX_ITEM_LIST_LENGTH"]) for teacher in teachers]

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The teachers' scores together, [B, n_items]; all 0 where none covers the history."""
        encoded = (
            (teacher, teacher.encode_batch(newest(interaction, self, max_length), items), items)
            for teacher, max_length in self.parts
            for items in [teacher.encode_items()]  # [n_items, D]
        )
        if self.trust.gate is None:
            return fused_scores(encoded, self.trust.priors, self.product)
        scores = torch.stack([_scaled(*each) for each in encoded])  # [T, B, n_items]
        histories, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        size = max(1, _AT_ONCE // scores[:, 0].numel())
        blocks = zip(scores.split(size, dim=1), histories.split(size), lengths.split(size), strict=True)
        return torch.cat([self._gated(*block) for block in blocks])

    def _gated(self, scores: Tensor, item_seq: Tensor, lengths: Tensor) -> Tensor:
        """Fused scores [B, n_items] by the gate; scores: [T, B, n_items], -inf: not covered."""
        gate = self.trust.gate
        assert gate is not None and self.popularity is not None
        there = item_seq.new_zeros(scores.shape[1:], dtype=torch.bool).scatter(1, item_seq, True)  # PAD is among them
        profiles = profile(scores.masked_fill(there, -torch.inf))
        logs = relative(scores, profiles).masked_fill(scores == -torch.inf, torch.nan)
        popularity = self.popularity.to(scores.device).expand(len(item_seq), -1)  # [B, n_items]
        fused = gate.fused(logs, gate.weighed(logs, profiles, popularity, lengths))
        known = fused.isfinite()
        return fused.masked_fill(~known, torch.finfo(fused.dtype).min).masked_fill(~known.any(1, keepdim=True), 0)


def _scaled(teacher: Teacher, histories: Tensor, items: Tensor) -> Tensor:
    """Scores divided by the temperature, [B, n_items]; -inf for what the teacher does not cover."""
    scores = teacher.scores(histories, items).float() / teacher.temperature
    covered = (histories != 0).any(dim=1, keepdim=True) & teacher.covered_items().to(scores.device)
    return scores.masked_fill(~covered, -torch.inf).nan_to_num(nan=-torch.inf)


def fused_scores(
    encoded: Iterable[tuple[Teacher, Tensor, Tensor]], priors: Sequence[float], product: bool = False
) -> Tensor:
    """The weighted mean of the teachers' normalised scores, or of their logarithms; 0 where none covers the history.

    Args:
        encoded: each teacher with the histories [B, D] and the items [n_items, D] in its own space; taken one after the
            other, since [B, n_items] is large.
        priors: the weight of each.
    Returns:
        [B, n_items].
    """
    total, number = torch.zeros(()), torch.zeros(())
    for (teacher, histories, items), prior in zip(encoded, priors, strict=True):
        counts = (histories != 0).any(dim=1, keepdim=True) * prior  # [B, 1]
        scores = teacher.scores(histories, items).float() / teacher.temperature  # [B, n_items]
        if product:
            counts = counts * teacher.covered_items().to(scores.device)  # [B, n_items]
            soft = scores.masked_fill(counts == 0, -torch.inf).log_softmax(dim=1).masked_fill(counts == 0, 0)
        else:
            soft = scores.softmax(dim=1)
        total = soft * counts + total.to(scores.device)
        number = counts + number.to(scores.device)
    mean = total / number.masked_fill(number == 0, 1)
    if not product:
        return mean
    return mean.masked_fill((number == 0) & (number > 0).any(dim=1, keepdim=True), torch.finfo(mean.dtype).min)


def newest(interaction: Interaction, model: SequentialRecommender, max_length: int) -> Interaction:
    """The batch with no more than the newest `max_length` items of each history, right-padded as before."""
    item_seq, length = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]  # [B, L], [B]
    position = torch.arange(min(max_length, item_seq.shape[1]), device=length.device)  # [max_length]
    shifted = position + (length - max_length).clamp(min=0)[:, None]  # [B, max_length]
    columns = {name: interaction[name] for name in interaction.columns}
    columns[model.ITEM_SEQ] = item_seq.gather(1, shifted)
    columns[model.ITEM_SEQ_LEN] = length.clamp(max=max_length)
    return Interaction(columns)


def serve(config: Config, split: Split, teachers: Sequence[FittedTeacher], trust: Trust) -> StudentResult:
    """The ensemble's metrics on validation and test examples, in the place of a student's."""
    data = teacher_data(split, config["kd_teacher_seed"])
    settings = max((teacher.config for teacher in teachers), key=lambda one: one["MAX_ITEM_LIST_LENGTH"])
    dataset, product = data.dataset(settings, data.test), config["kd_fusion"] == PRODUCT
    popularity = torch.bincount(data.train.targets, minlength=len(data.canonical))
    model = Ensemble(settings, dataset, teachers, trust, product, popularity).to(config["device"]).eval()
    groups: dict[str, GroupResult] = {}
    metrics = rankings(model, settings, data, groups)
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:  # beside a student whose ranking leaves earlier items out
        metrics |= {part: metrics[f"{part}_unseen"] for part in ("valid", "test")}
        groups = {name: entry.model_copy(update={"test": entry.test_unseen}) for name, entry in groups.items()}
    return StudentResult(
        valid=metrics["valid"],
        test=metrics["test"],
        valid_unseen=metrics["valid_unseen"],
        test_unseen=metrics["test_unseen"],
        model=config["model"],
        parameters=sum(teacher.parameters for teacher in teachers),
        train_seconds=0.0,
        epochs=0,
        checkpoint=None,
        train_losses=[],
        valid_scores=[],
        groups=groups,
    )
