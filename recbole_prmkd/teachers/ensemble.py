"""The teachers served together, with no student: what distillation would save, and the bound it is held against.

An item's score is the mean, over the teachers that cover the user's history, of softmax(cosine / temperature) over all
items, each at its own temperature. Our choice; averaging normalised scores is the plain form of an ensemble. It ranks
as a teacher does, with histories from the teachers' view of the data. Of the model that `--model` names only the kind
counts: for all but sequential models the ranking leaves a user's earlier items out, as RecBole's does.
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
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.fit import FittedTeacher, rankings

ENSEMBLE = "ensemble"  # the value of kd: nothing is trained


class Ensemble(SequentialRecommender):
    """Frozen teachers as one RecBole model that only scores."""

    input_type = InputType.POINTWISE

    def __init__(self, config: Config, dataset: Dataset, teachers: Sequence[FittedTeacher]) -> None:
        """config, dataset: those of the teacher with the greatest maximum length."""
        super().__init__(config, dataset)
        self.teachers = nn.ModuleList(teacher.model for teacher in teachers)
        self.parts = [(teacher.model, teacher.config["MAX_ITEM_LIST_LENGTH"]) for teacher in teachers]

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """The mean over the teachers, [B, n_items]; all 0 where none covers the history."""
        return mean_scores(
            (teacher, teacher.encode_batch(newest(interaction, self, max_length), items), items)
            for teacher, max_length in self.parts
            for items in [teacher.encode_items()]  # [n_items, D]
        )


def mean_scores(encoded: Iterable[tuple[Teacher, Tensor, Tensor]]) -> Tensor:
    """The mean of the teachers' normalised scores, [B, n_items]; all 0 where none covers the history.

    Args:
        encoded: each teacher with the histories [B, D] and the items [n_items, D] in its own space; taken one after the
            other, since [B, n_items] is large.
    """
    total, number = torch.zeros(()), torch.zeros(())
    for teacher, histories, items in encoded:
        covered = (histories != 0).any(dim=1, keepdim=True)  # [B, 1]
        cosine = teacher.scores(histories, items).float()  # [B, n_items]
        total = (cosine / teacher.temperature).softmax(dim=1) * covered + total.to(cosine.device)
        number = covered + number.to(cosine.device)
    return total / number.clamp(min=1)


def newest(interaction: Interaction, model: SequentialRecommender, max_length: int) -> Interaction:
    """The batch with no more than the newest `max_length` items of each history, right-padded as before."""
    item_seq, length = interaction[model.ITEM_SEQ], interaction[model.ITEM_SEQ_LEN]  # [B, L], [B]
    position = torch.arange(min(max_length, item_seq.shape[1]), device=length.device)  # [max_length]
    shifted = position + (length - max_length).clamp(min=0)[:, None]  # [B, max_length]
    columns = {name: interaction[name] for name in interaction.columns}
    columns[model.ITEM_SEQ] = item_seq.gather(1, shifted)
    columns[model.ITEM_SEQ_LEN] = length.clamp(max=max_length)
    return Interaction(columns)


def serve(config: Config, split: Split, teachers: Sequence[FittedTeacher]) -> StudentResult:
    """The ensemble's metrics on validation and test examples, in the place of a student's."""
    data = teacher_data(split, config["kd_teacher_seed"])
    settings = max((teacher.config for teacher in teachers), key=lambda one: one["MAX_ITEM_LIST_LENGTH"])
    model = Ensemble(settings, data.dataset(settings, data.test), teachers).to(config["device"]).eval()
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
