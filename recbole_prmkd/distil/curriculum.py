"""The curriculum of a training: which examples an epoch shows, to RecBole's loaders and to windows.

`distil.pacing` has the formulas (difficulty, pacing, order); here they meet the loaders.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import UserDataLoader
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.distil.pacing import PACING, difficulty, scheduled_examples
from recbole_prmkd.students.windows import WindowLoader


class Curriculum:
    """Which training examples an epoch shows: a pure function of (seed, epoch).

    Students that are trained on whole users see users instead, each as difficult as the user's newest example.
    """

    def __init__(self, config: Config, train: Examples) -> None:
        self.config, self.train = config, train
        self.popularity = mean_popularity(train)  # [N]
        level = difficulty(train.lengths, self.popularity, config["kd_curriculum_mix"])  # [N]
        self.difficulty = self._without_history_last(level, train.lengths)

    def schedule(self, train_data: Any, epoch: int) -> float:
        """Let the loader show this epoch's examples to both losses; returns their share of all examples."""
        config = self.config
        share = PACING[config["kd_pacing"]](epoch, config["kd_pacing_start"], config["kd_pacing_length"])
        loader = interactions(train_data)
        loader = getattr(loader, "loader", loader)  # Recformer's trainer samples from RecBole's loader
        if isinstance(loader, UserDataLoader):
            users, level = self._users
            show_only(loader, users[scheduled_examples(level, share, config["kd_curriculum"], config["seed"])])
            return share
        examples = scheduled_examples(self.difficulty, share, config["kd_curriculum"], config["seed"])
        if isinstance(loader, WindowLoader):
            loader.schedule(examples)
        else:
            show_only(loader, examples)
        return share

    @cached_property
    def _users(self) -> tuple[Tensor, Tensor]:
        """Users with training examples, and their difficulty: [U] both."""
        train = self.train
        by_length = torch.argsort(train.lengths, stable=True)
        by_user = by_length[torch.argsort(train.users[by_length], stable=True)]
        users, number = torch.unique(train.users, return_counts=True)
        newest = by_user[number.cumsum(0) - 1]  # [U] the example with the longest history
        level = difficulty(train.lengths[newest], self.popularity[newest], self.config["kd_curriculum_mix"])
        return users, self._without_history_last(level, train.lengths[newest])

    def _without_history_last(self, level: Tensor, lengths: Tensor) -> Tensor:
        """No teacher covers an example without history, so those that have one come first (our choice)."""
        return torch.where(lengths > 0, level, -1.0 if self.config["kd_curriculum"] == "hard" else 2.0)


def interactions(train_data: Any) -> Any:
    """The loader of users' interactions: a knowledge model's loader holds it beside one of triples."""
    return getattr(train_data, "general_dataloader", train_data)


def show_only(loader: Any, numbers: Tensor) -> None:
    """Let a RecBole loader give these examples (or users) only, from its next epoch on."""
    # It takes examples from this list. A sampler made from it follows its length; that of several processes does not.
    vars(loader)["dataset"][:] = numbers.tolist()
    if isinstance(loader.sampler, DistributedSampler):
        examples: Any = numbers.tolist()
        sampler: DistributedSampler[Any] = DistributedSampler(examples, shuffle=loader.sampler.shuffle)
        vars(loader.sampler).update(vars(sampler))


@contextmanager
def all_shown_afterwards(train_data: Any) -> Iterator[None]:
    """A RecBole loader that shows all of its examples again when training ends."""
    loader = interactions(train_data)
    shown = list(vars(loader)["dataset"])  # `loader.dataset` is the data set itself
    try:
        yield
    finally:
        show_only(loader, torch.tensor(shown))


def mean_popularity(train: Examples) -> Tensor:
    """Mean training count of the items of each example's history (of its target where it has none), [N]."""
    count = torch.bincount(train.targets, minlength=int(train.items.max()) + 1).double().clamp(min=1)
    total = torch.cat([torch.zeros(1, dtype=torch.double), count[train.items].cumsum(0)])
    mean = (total[train.stop] - total[train.start]) / train.lengths.clamp(min=1)
    return torch.where(train.lengths > 0, mean, count[train.targets])
