"""The distillation trainer: RecBole's own trainers, whose loss function is `compute_loss`.

RecBole's training loop takes the loss as an argument, so neither the loop nor the model is changed. The teachers are
never part of the student: its parameters, checkpoint and serving cost are those of the stock model.
"""

from functools import partial
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import NCLTrainer, Trainer

from recbole_prmkd.distil.curriculum import Curriculum, interactions
from recbole_prmkd.distil.objective import Objective
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.finite import KD, OWN, watch_loss
from recbole_prmkd.recbole_host.models import host_trainer
from recbole_prmkd.students.adapter import Loss
from recbole_prmkd.students.windows import WindowLoader
from recbole_prmkd.teacher_cache.scores import TeacherCache

# Trainers with a training loop of their own, which takes the loss as an argument as RecBole's does.
_OWN_LOOP = (NCLTrainer,)


class PRMKDTrainer(Trainer):
    """RecBole's trainer with the KD loss and the curriculum; `history` holds one dict of numbers per epoch.

    Built as RecBole builds trainers, `PRMKDTrainer(config, model)`. Then `fit` prepares teachers and teacher cache from
    the config and the loaders that it is given. Set `teacher_cache` before, and no teacher is made; `distil` hands over
    a whole objective. For a model that RecBole trains with another trainer (MKR, RecVAE...), the
    object is of a subclass of both.

    Raises:
        UserError: the config has no `kd` that distils, or the trainer of the model ignores the loss function.
    """

    def __new__(cls, config: Config, model: AbstractRecommender) -> "PRMKDTrainer":
        """The subclass that this model needs."""
        return super().__new__(distillation_trainer(host_trainer(config, type(model))) if cls is PRMKDTrainer else cls)

    def __init__(self, config: Config, model: AbstractRecommender) -> None:
        super().__init__(config, model)
        self.teacher_cache: TeacherCache | None = None  # of the training examples of `fit`
        self.objective: Objective | None = None
        self.curriculum: Curriculum | None = None
        self.history: list[dict[str, float]] = []
        self.loss_terms: dict[str, torch.Tensor] = {}  # of the newest batch
        self._alone = False
        self._epoch_seen = -1  # the last epoch whose loss went through `_train_epoch` below
        self._shown = 1.0
        watch_loss(self)

    def distil(self, objective: Objective | None, curriculum: Curriculum | None = None) -> None:
        """Train with this objective and curriculum from now on; None: without kd_loss (`kd_weight: 0`)."""
        self.objective, self.curriculum, self._alone = objective, curriculum, objective is None

    def distil_by_itself(self) -> None:
        """Prepare everything in the next `fit`, as a new trainer does."""
        self.objective, self.curriculum, self._alone = None, None, False

    def fit(self, train_data: Any, valid_data: Any = None, *args: Any, **kwargs: Any) -> Any:
        """RecBole's `fit`. Without `distil` before it, everything that distillation needs is prepared first."""
        if self.objective is not None or self._alone:
            return super().fit(train_data, valid_data, *args, **kwargs)
        from recbole_prmkd.training import distilled_by_itself  # which builds trainers

        with distilled_by_itself(self, train_data, valid_data) as data:
            return super().fit(data, valid_data, *args, **kwargs)

    def compute_loss(self, loss: Loss, batch: Interaction) -> Any:
        """rec_loss + weight x kd_loss of one batch; both are recorded apart.

        A loss of several parts gets kd_loss as its first part, since NCL drops the last one in its warm-up. To a
        single loss kd_loss is added, since some trainers (MKR's) cannot add up parts.

        Args:
            loss: the model's own loss of a batch, as the trainer chose it.
        """
        objective = self.objective
        assert objective is not None
        if objective.due():
            rec_loss = objective.student.rec_loss(loss, batch)
            kd_loss = objective(batch)
            if objective.baseline is not None:
                objective.baseline.join(self.optimizer)  # on the first batch
            kd_loss = objective.weight * objective.every_factor * kd_loss  # both decided by now, on the first batch too
        else:
            rec_loss = loss(batch)
            kd_loss = torch.zeros((), device=self.device)  # a loss in parts has as many in each batch
        if isinstance(rec_loss, tuple):
            own = torch.stack([part.detach().sum() for part in rec_loss]).sum()
        else:
            own = rec_loss.detach()
        objective.note(["rec_loss"], own.reshape(1))
        self.loss_terms = {OWN: own, KD: kd_loss.detach()}
        return (kd_loss, *rec_loss) if isinstance(rec_loss, tuple) else kd_loss + rec_loss

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Loss | None = None, show_progress: bool = False
    ) -> Any:
        """One pass over the scheduled examples. A trainer may make several of an epoch, each with its own loss."""
        if self.objective is None and not self._alone:
            raise UserError(
                f"{type(self.model).__name__} is in a stage of its training that is not distilled: train that stage "
                "with RecBole's own trainer, then distil the last one."
            )
        self._epoch_seen = epoch_idx
        loss = loss_func or self.model.calculate_loss
        if isinstance(train_data, WindowLoader):
            train_data.epoch = epoch_idx
        if self.curriculum is not None:
            self._shown = self.curriculum.schedule(train_data, epoch_idx)
        # A knowledge model's loss on triples has no candidates to score.
        if self.objective is not None and loss != getattr(self.model, "calculate_kg_loss", None):
            self.objective.begin(epoch_idx, len(interactions(train_data)))
            loss = partial(self.compute_loss, loss)
        return super()._train_epoch(train_data, epoch_idx, loss_func=loss, show_progress=show_progress)

    def _add_train_loss_to_tensorboard(self, epoch_idx: int, losses: Any, tag: str = "Loss/Train") -> None:
        """RecBole's record of an epoch's losses, and beside it what explains the distillation."""
        super()._add_train_loss_to_tensorboard(epoch_idx, losses, tag)
        if self.objective is None:
            return
        if self._epoch_seen != epoch_idx:
            raise UserError(
                f"{type(self).__name__} trains {type(self.model).__name__} without the loss function that it is given, "
                "so nothing was distilled: let its _train_epoch call super()._train_epoch, or use --kd=none."
            )
        decided = {"kd_weight": self.objective.weight, "kd_every": self.objective.every, "share": self._shown}
        numbers = {**self.objective.epoch_means(), **decided}
        self.history.append({"epoch": epoch_idx, **numbers})
        if len(self.history) == 1 and (taught := numbers.get("teaching", 0.0)) < 0.5:
            self.logger.warning(few_teach(f"{100 * taught:.0f} % of the examples of the first epoch"))
        for name, value in numbers.items():
            self.tensorboard.add_scalar(f"Distillation/{name}", value, epoch_idx)
        self.logger.info(f"epoch {epoch_idx} distillation [{_in_words(numbers)}]")


def distillation_trainer(host: type) -> type[PRMKDTrainer]:
    """The trainer class of a host trainer: PRMKDTrainer for the plain one, a subclass of both for any other.

    The host comes first, so that the loss functions that it chooses (MKR's, RecVAE's two) reach
    `PRMKDTrainer._train_epoch`; it comes last where it has a loop of its own.
    """
    if host is Trainer:
        return PRMKDTrainer
    bases = (PRMKDTrainer, host) if issubclass(host, _OWN_LOOP) else (host, PRMKDTrainer)
    return type(f"PRMKD{host.__name__}", bases, {})


def few_teach(few: str) -> str:
    """The warning of a training in which less than half of the examples teach; few: how many do."""
    return (
        f"Only {few} teach: for the others no teacher covers two candidates. Check the teachers' coverage (histories, "
        "texts) and the masks kd_history_mask and kd_false_negative_mask."
    )


def _in_words(values: dict[str, float]) -> str:
    """One line of numbers for the log."""
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
