"""The two rankings that every number of this project names.

- as RecBole ranks: general models leave out the user's earlier items, sequential models do not
- unseen: every model leaves out the user's earlier items, keeps the target itself, and ranks all other items, also
  where RecBole's own ranking is of sampled items

Models of different kinds can be compared on the second only.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader, FullSortEvalDataLoader, NegSampleEvalDataLoader
from recbole.data.dataset import Dataset
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, ModelType

from recbole_prmkd.data.examples import Examples

_SAMPLES = 2020  # seed of a validation's samples, not the run's: runs of other seeds are compared


class UnseenEvalDataLoader(FullSortEvalDataLoader):
    """RecBole's full-ranking loader of a sequential data set, with each example's earlier items left out."""

    def __init__(self, config: Config, dataset: Dataset, examples: Examples) -> None:
        self._examples = examples
        super().__init__(config, dataset, None, shuffle=False)

    def collate_fn(self, index: list[int]) -> tuple[Any, ...]:
        """As the parent, with (row of the batch, item) pairs to leave out in place of None."""
        interaction, _, positive_u, positive_i = super().collate_fn(index)
        numbers = torch.from_numpy(np.array(index))
        earlier, _ = self._examples.histories(numbers, int(self._examples.lengths.max()))  # [B, L]
        keep = (earlier != 0) & (earlier != self._examples.targets[numbers][:, None])
        row, column = torch.nonzero(keep, as_tuple=True)
        return interaction, (row, earlier[row, column]), positive_u, positive_i


def evaluate_unseen(
    trainer: Trainer, config: Config, loader: AbstractDataLoader, examples: Examples
) -> dict[str, float] | None:
    """Metrics with the user's earlier items left out, or None where RecBole's own numbers are that already.

    Args:
        trainer: holds the model to evaluate, with its weights in place.
        loader: RecBole's own of the validation or test part.
        examples: those of the same part, with their whole histories.
    """
    if leaves_out(config, loader):
        return None
    return plain(trainer.evaluate(unseen_loader(config, loader._dataset, examples), load_best_model=False))


def leaves_out(config: Config, loader: AbstractDataLoader) -> bool:
    """Whether RecBole's own evaluation is the unseen ranking already, or no ranking (of labelled examples)."""
    if config["eval_type"] != EvaluatorType.RANKING:
        return True
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        return False
    return isinstance(loader, FullSortEvalDataLoader) and not config["repeatable"]


def unseen_loader(config: Config, dataset: Dataset, examples: Examples) -> FullSortEvalDataLoader:
    """All items for each example (sequential models) or user (others), the user's earlier ones left out."""
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        return UnseenEvalDataLoader(config, dataset, examples)
    earlier: defaultdict[int | None, set[int]] = defaultdict(set)
    items = examples.items.tolist()
    for user, start, stop in torch.stack([examples.users, examples.start, examples.stop], dim=1).tolist():
        earlier[user].update(items[start:stop])
    return FullSortEvalDataLoader(config, dataset, SimpleNamespace(used_ids=earlier))  # in place of its sampler


@contextmanager
def same_samples(trainer: Any, config: Config, loader: Any) -> Iterator[None]:
    """Inside, each validation that ranks samples ranks the same ones, in all epochs, trials and cells of a data set.

    RecBole samples anew each time, user by user in the order of their ids, so an early stop is partly luck. Without
    distillation and the ranking protocol it is left as it is. Nothing else sees another random number.
    """
    stock = config["kd"] == "none" and config["kd_protocol"] != "ranking"
    if stock or not isinstance(loader, NegSampleEvalDataLoader):
        yield
        return
    validate = trainer._valid_epoch

    def seeded(*args: Any, **kwargs: Any) -> Any:
        before = np.random.get_state()
        np.random.seed(_SAMPLES)
        try:
            return validate(*args, **kwargs)
        finally:
            np.random.set_state(before)

    trainer._valid_epoch = seeded
    try:
        yield
    finally:
        del trainer._valid_epoch


def plain(metrics: dict[str, Any] | None) -> dict[str, float]:
    """Metrics as plain numbers under RecBole's own keys (`ndcg@10`); none where RecBole has none (a first stage)."""
    return {key: float(value) for key, value in (metrics or {}).items()}
