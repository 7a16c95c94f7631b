"""The multi-teacher distillation trainer: a mixin over any RecBole trainer, whose loop stays its own.

The model's loss is wrapped on the instance, so every RecBole trainer carries distillation; the teachers are never
part of the student, so its parameters, checkpoint and serving cost are the stock model's.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import UserDataLoader
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer
from torch import Tensor
from torch.utils.data.distributed import DistributedSampler

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.distil.curriculum import PACING, difficulty, scheduled_examples
from recbole_prmkd.distil.objective import Objective, described
from recbole_prmkd.students.windows import WindowLoader


class DistillationMixin:
    """Adds to a RecBole trainer: the kd_loss, the curriculum, and a record of each epoch.

    Without `distil` it is the host trainer unchanged. `history` holds one dict of numbers per epoch.
    """

    config: Config
    model: AbstractRecommender
    tensorboard: Any
    logger: Any

    objective: Objective | None = None
    curriculum: "Curriculum | None" = None

    def distil(self, objective: Objective, curriculum: "Curriculum | None") -> None:
        """Train with this objective and curriculum from now on."""
        self.objective, self.curriculum = objective, curriculum
        self.history: list[dict[str, float]] = []
        # MKR alone has its rec_loss under another name.
        name = "calculate_rs_loss" if hasattr(self.model, "calculate_rs_loss") else "calculate_loss"
        setattr(self.model, name, with_kd(getattr(self.model, name), objective))

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        """The host's epoch on the scheduled rows, then the epoch's record."""
        if isinstance(train_data, WindowLoader):
            train_data.epoch = epoch_idx
        share = self.curriculum.schedule(train_data, epoch_idx) if self.curriculum else 1.0
        if self.objective is not None:
            self.objective.begin(epoch_idx, len(interactions(train_data)))
        losses = super()._train_epoch(train_data, epoch_idx, *args, **kwargs)  # type: ignore[misc]
        if self.objective is not None:
            settled = {"kd_weight": self.objective.weight, "kd_every": self.objective.every, "share": share}
            numbers = {**self.objective.epoch_means(), **settled}
            self.history.append({"epoch": epoch_idx, **numbers})
            for name, value in numbers.items():
                self.tensorboard.add_scalar(f"Distillation/{name}", value, epoch_idx)
            self.logger.info(f"epoch {epoch_idx} distillation [{described(numbers)}]")
        return losses


class PRMKDTrainer(DistillationMixin, Trainer):
    """The trainer of students that RecBole trains with its plain `Trainer`."""


def distillation_trainer(host: type) -> type:
    """The host trainer class with distillation: PRMKDTrainer for the plain one, a subclass for any other."""
    return PRMKDTrainer if host is Trainer else type(f"PRMKD{host.__name__}", (DistillationMixin, host), {})


def with_kd(calculate_loss: Callable[..., Any], objective: Objective) -> Callable[..., Any]:
    """The student's loss with the weighted kd_loss added; both are recorded apart.

    A loss in parts stays one, with kd_loss in front: one RecBole trainer (NCL) drops the last part in its warm-up. One
    in one part stays that too: some trainers (MKR's) cannot add up more.
    """

    def loss(interaction: Interaction, *args: Any, **kwargs: Any) -> Any:
        if objective.due():
            with objective.scorer.watching():
                rec_loss = calculate_loss(interaction, *args, **kwargs)
            kd_loss = objective(interaction)
            kd_loss = objective.weight * objective.times * kd_loss  # both known now, on the first batch too
        else:
            rec_loss = calculate_loss(interaction, *args, **kwargs)
            kd_loss = torch.zeros((), device=objective.config["device"])  # a loss in parts has as many in each batch
        if isinstance(rec_loss, tuple):
            objective.note("rec_loss", torch.stack([part.detach().sum() for part in rec_loss]).sum())
            return (kd_loss, *rec_loss)
        objective.note("rec_loss", rec_loss)
        return kd_loss + rec_loss

    return loss


class Curriculum:
    """Which training rows an epoch shows: a pure function of (seed, epoch).

    Students that are trained on whole users see users instead, each as difficult as the user's newest row.
    """

    def __init__(self, config: Config, train: Examples) -> None:
        self.config, self.train = config, train
        self.popularity = mean_popularity(train)  # [N]
        self.difficulty = difficulty(train.lengths, self.popularity, config["kd_curriculum_mix"])  # [N]

    def schedule(self, train_data: Any, epoch: int) -> float:
        """Let the loader show this epoch's rows to both losses; returns their share of all rows."""
        config = self.config
        share = PACING[config["kd_pacing"]](epoch, config["kd_pacing_start"], config["kd_pacing_length"])
        loader = interactions(train_data)
        if isinstance(loader, UserDataLoader):
            users, level = self._users
            show_only(loader, users[scheduled_examples(level, share, config["kd_curriculum"], config["seed"])])
            return share
        rows = scheduled_examples(self.difficulty, share, config["kd_curriculum"], config["seed"])
        if isinstance(loader, WindowLoader):
            loader.schedule(rows)
        else:
            show_only(loader, rows)
        return share

    @cached_property
    def _users(self) -> tuple[Tensor, Tensor]:
        """Users with training rows, and their difficulty: [U] both."""
        train = self.train
        by_length = torch.argsort(train.lengths, stable=True)
        by_user = by_length[torch.argsort(train.users[by_length], stable=True)]
        users, number = torch.unique(train.users, return_counts=True)
        rows = by_user[number.cumsum(0) - 1]  # [U] with the longest history
        return users, difficulty(train.lengths[rows], self.popularity[rows], self.config["kd_curriculum_mix"])


def interactions(train_data: Any) -> Any:
    """The loader of users' rows: a knowledge model's loader holds it beside one of triples."""
    return getattr(train_data, "general_dataloader", train_data)


def show_only(loader: Any, numbers: Tensor) -> None:
    """Let a RecBole loader draw these rows (or users) alone, from its next epoch on."""
    # It draws from this list; a sampler made from it follows its length, that of several processes has counted before.
    vars(loader)["dataset"][:] = numbers.tolist()
    if isinstance(loader.sampler, DistributedSampler):
        rows: Any = numbers.tolist()
        sampler: DistributedSampler[Any] = DistributedSampler(rows, shuffle=loader.sampler.shuffle)
        vars(loader.sampler).update(vars(sampler))


def mean_popularity(train: Examples) -> Tensor:
    """Mean training count of the items of each row's history (of its target where it has none), [N]."""
    count = torch.bincount(train.targets, minlength=int(train.items.max()) + 1).double().clamp(min=1)
    total = torch.cat([torch.zeros(1, dtype=torch.double), count[train.items].cumsum(0)])
    mean = (total[train.stop] - total[train.start]) / train.lengths.clamp(min=1)
    return torch.where(train.lengths > 0, mean, count[train.targets])
