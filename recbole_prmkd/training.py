"""A student and its training, the same for a plain run and for a trial of a sweep.

`make_trainer` builds the student from what was prepared, `train` fits it; a state of `progress` lets it go on from
the epoch at which another process stopped.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.data.transform import construct_transform
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType, get_flops, get_model, get_trainer, init_seed

from recbole_prmkd.data.split import Split
from recbole_prmkd.distil.objective import Objective
from recbole_prmkd.distil.trainer import Curriculum, distillation_trainer
from recbole_prmkd.preparation import Prepared
from recbole_prmkd.recbole_host import progress
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.students.dropout import scale_dropout
from recbole_prmkd.students.padding import without_padding
from recbole_prmkd.students.warm_start import warm_start
from recbole_prmkd.students.windows import WindowLoader, shared_prefixes, why_not_shared
from recbole_prmkd.teacher_cache.scores import TeacherCache
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.fit import start

# Called after each validation with the trainer, its training loader, the epoch and the validation score.
AfterEpoch = Callable[[Any, Any, int, float], None]


def make_trainer(config: Config, prepared: Prepared, folder: Path) -> Any:
    """The student, seeded, inside its trainer (`trainer.model`), whose files go to `folder`."""
    split = prepared.split
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    student = get_model(config["model"])(config, split.train_data._dataset).to(config["device"])
    if config["model"] in TEACHERS:
        start(student, config["model"], config)
    if distils(config):
        scale_dropout(student, config["kd_dropout"])
    if prepared.start_vectors is not None:
        warm_start(student, config, split.dataset, prepared.start_vectors)
    getLogger().info(student)
    _log_flops(student, config, split)
    return quiet_trainer(_trainer_class(config), config, student, folder)


def train(
    config: Config,
    prepared: Prepared,
    trainer: Any,
    saved: bool,
    after_epoch: AfterEpoch | None = None,
    state: Mapping[str, Any] | None = None,
) -> tuple[float, dict[str, float], float]:
    """Fit the student; returns RecBole's best validation score and result, and the seconds that all of it took.

    Args:
        saved: keep the best epoch's weights in the trainer's file.
        after_epoch: called after each validation.
        state: what `progress.captured` gave after an earlier epoch, to go on from there.
    """
    started = time.time()
    with ExitStack() as stack:
        train_data = _training_data(config, prepared.split, trainer.model, stack)
        if prepared.knowledge is not None:
            _distil(config, prepared.split, prepared.knowledge, trainer.model, trainer)
        progress.begin(trainer)
        if state is not None:
            progress.restore(state, trainer, train_data)

        def callback(epoch: int, score: float) -> None:
            if after_epoch is not None:
                after_epoch(trainer, train_data, epoch, score)

        score, result = trainer.fit(
            train_data,
            prepared.split.valid_data,
            saved=saved,
            show_progress=config["show_progress"],
            callback_fn=callback,
        )
        return score, result, time.time() - started


def distils(config: Config) -> bool:
    """Whether kd_loss is in use."""
    return config["kd"] != "none" and config["kd_weight"] > 0


def _log_flops(student: AbstractRecommender, config: Config, split: Split) -> None:
    """RecBole's count, which fails for some models and data (DSSM with number features): no reason to stop."""
    try:
        flops = get_flops(student, split.dataset, config["device"], getLogger(), construct_transform(config))
    except Exception as error:  # whatever the counter or the model raises on its one made-up row
        getLogger().warning(f"FLOPs are not known: RecBole's counter fails on {config['model']} ({error}).")
    else:
        getLogger().info(f"FLOPs: {flops}")


def _trainer_class(config: Config) -> type:
    host = get_trainer(config["MODEL_TYPE"], config["model"])
    return host if config["kd"] == "none" else distillation_trainer(host)


@contextmanager
def ranking(config: Config, split: Split, student: AbstractRecommender) -> Iterator[None]:
    """Inside, a student trained on windows is ranked without padding, as in the validations of its training."""
    with ExitStack() as stack:
        if _wants_windows(config) and why_not_shared(student, config, split.train) is None:
            stack.enter_context(without_padding(student, config))
        yield


def _wants_windows(config: Config) -> bool:
    wanted = config["kd_shared_prefixes"]
    return distils(config) and config["MODEL_TYPE"] == ModelType.SEQUENTIAL if wanted == "auto" else wanted


def _training_data(config: Config, split: Split, student: AbstractRecommender, stack: ExitStack) -> Any:
    """RecBole's training loader, or windows where shared prefixes are wanted and the student allows them."""
    if not _wants_windows(config):
        return split.train_data
    reason = why_not_shared(student, config, split.train)
    if reason is not None:
        getLogger().warning(f"{config['model']} is trained row by row, as in RecBole: {reason}.")
        return split.train_data
    stack.enter_context(shared_prefixes(student))
    stack.enter_context(without_padding(student, config))
    return WindowLoader(config, split.train_data._dataset, split.train)


def _distil(config: Config, split: Split, knowledge: TeacherCache, student: AbstractRecommender, trainer: Any) -> None:
    if not distils(config):
        getLogger().info("kd_weight is 0: the student trains alone, without kd_loss and curriculum.")
        return
    scorer = StudentAdapter(student, config, split.train_data._dataset, split.train)
    objective = Objective(config, knowledge, split.train, split.future, scorer)
    if config["kd_curriculum"] != "none" and config["epochs"] <= config["kd_pacing_length"]:
        getLogger().warning(
            f"kd_pacing_length is {config['kd_pacing_length']} and epochs {config['epochs']}: training ends before the "
            "curriculum has shown all rows for an epoch."
        )
    trainer.distil(objective, Curriculum(config, split.train) if config["kd_curriculum"] != "none" else None)
