"""The two rankings that every number of this project names.

- as RecBole does it: general models leave out the user's earlier items, sequential models do not;
- unseen: the user's earlier items are left out for every model, the target itself always stays in, and all other items
  are ranked, also where RecBole's own ranking is of samples.

Without the second, numbers of the two kinds of model cannot be compared.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader, FullSortEvalDataLoader
from recbole.data.dataset import Dataset
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, ModelType

from recbole_prmkd.data.examples import Examples


class UnseenEvalDataLoader(FullSortEvalDataLoader):
    """RecBole's full-ranking loader of a sequential data set, with the rows' earlier items left out."""

    def __init__(self, config: Config, dataset: Dataset, rows: Examples) -> None:
        self._rows = rows
        super().__init__(config, dataset, None, shuffle=False)

    def collate_fn(self, index: list[int]) -> tuple[Any, ...]:
        """As the parent, with (row, item) pairs to leave out in place of None."""
        interaction, _, positive_u, positive_i = super().collate_fn(index)
        rows = torch.from_numpy(np.array(index))
        earlier, _ = self._rows.histories(rows, int(self._rows.lengths.max()))  # [B, L]
        keep = (earlier != 0) & (earlier != self._rows.targets[rows][:, None])
        row, column = torch.nonzero(keep, as_tuple=True)
        return interaction, (row, earlier[row, column]), positive_u, positive_i


def evaluate_unseen(
    trainer: Trainer, config: Config, loader: AbstractDataLoader, rows: Examples
) -> dict[str, float] | None:
    """Metrics with the user's earlier items left out, or None where RecBole's own numbers are that already.

    Args:
        trainer: holds the model to evaluate, with its weights in place.
        loader: RecBole's own of the validation or test part.
        rows: the same rows with their whole histories.
    """
    if leaves_out(config, loader):
        return None
    return plain(trainer.evaluate(unseen_loader(config, loader._dataset, rows), load_best_model=False))


def leaves_out(config: Config, loader: AbstractDataLoader) -> bool:
    """Whether RecBole's own evaluation is the unseen ranking, or none at all (of labelled rows)."""
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        return False
    if config["eval_type"] != EvaluatorType.RANKING:
        return True
    return isinstance(loader, FullSortEvalDataLoader) and not config["repeatable"]


def unseen_loader(config: Config, dataset: Dataset, rows: Examples) -> FullSortEvalDataLoader:
    """All items of the part's rows (sequential models) or users (others), the user's earlier ones left out."""
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        return UnseenEvalDataLoader(config, dataset, rows)
    earlier: defaultdict[int | None, set[int]] = defaultdict(set)
    row, item = rows.history_pairs(torch.arange(len(rows)))  # [P] both
    for user, its_item in zip(rows.users[row].tolist(), item.tolist(), strict=True):
        earlier[user].add(its_item)
    return FullSortEvalDataLoader(config, dataset, SimpleNamespace(used_ids=earlier))  # in place of its sampler


def plain(metrics: dict[str, Any] | None) -> dict[str, float]:
    """Metrics as plain numbers under RecBole's own keys (`ndcg@10`); none where RecBole has none (a first stage)."""
    return {key: float(value) for key, value in (metrics or {}).items()}
