"""Ranking without padding: a causal student reads each history at about its own length.

RecBole pads every history of a ranking to the maximum length; on short histories most of a validation is spent on
padding. A causal model's state at the last item depends on no later place, so short histories are read apart from
long ones, each part cut to its longest. Only for models that `prefixes.why_not_shared` has found causal.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor

from recbole_prmkd.students.windows import WINDOW

_TOGETHER = 128  # rows of similar length: enough for full matrix products


@contextmanager
def without_padding(model: AbstractRecommender, config: Config) -> Iterator[None]:
    """Inside, `full_sort_predict` of plain batches gives the same scores, up to rounding, from shorter sequences."""
    full_sort_predict = model.full_sort_predict
    before = vars(model).get("full_sort_predict")

    def predict(interaction: Interaction) -> Tensor:
        if WINDOW in interaction:
            return full_sort_predict(interaction)
        length = interaction[config["ITEM_LIST_LENGTH_FIELD"]]  # [B]
        parts = torch.argsort(length, stable=True).split(_TOGETHER)
        scores = [
            full_sort_predict(_cut(interaction[part], length[part], config)).view(len(part), -1) for part in parts
        ]
        back = torch.argsort(torch.cat(parts))
        return torch.cat(scores)[back]  # [B, n_items]

    model.full_sort_predict = predict
    try:
        yield
    finally:
        del model.__dict__["full_sort_predict"]
        if before is not None:
            model.full_sort_predict = before


def _cut(interaction: Interaction, length: Tensor, config: Config) -> Interaction:
    """The rows with every list of theirs cut to the longest history."""
    max_length, suffix = int(length.max()), config["LIST_SUFFIX"]
    for name in interaction.columns:
        if name.endswith(suffix) and interaction[name].dim() > 1:
            interaction.interaction[name] = interaction[name][:, :max_length]
    return interaction
