"""A student and its training, the same for a plain run and for a trial of a sweep.

`make_trainer` builds the student from what was prepared, `train` fits it; a state of `progress` lets it go on from
the epoch at which another process stopped. `distilled_by_itself` is for a trainer that RecBole's own code has built.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.transform import construct_transform
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType, get_flops, get_model, init_seed

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.data.split import Split, split_of_loaders
from recbole_prmkd.distil.baselines import method_of
from recbole_prmkd.distil.candidates import SOURCES, Exclusions
from recbole_prmkd.distil.curriculum import Curriculum, all_shown_afterwards
from recbole_prmkd.distil.objective import Objective
from recbole_prmkd.distil.shown import about
from recbole_prmkd.distil.trainer import PRMKDTrainer, distillation_trainer, few_teach
from recbole_prmkd.errors import UserError
from recbole_prmkd.preparation import Prepared, Steps, prepare_on
from recbole_prmkd.recbole_host import progress
from recbole_prmkd.recbole_host.checks import check_distillation, check_teachers
from recbole_prmkd.recbole_host.config import complete
from recbole_prmkd.recbole_host.finite import overflow_explained
from recbole_prmkd.recbole_host.keys import has_teachers
from recbole_prmkd.recbole_host.models import host_trainer
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.results.evaluation import same_samples
from recbole_prmkd.serving.carry_over import carry_over
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.students.causal_check import why_not_shared
from recbole_prmkd.students.warm_start import warm_start
from recbole_prmkd.students.windows import WindowedModel, WindowLoader, without_padding
from recbole_prmkd.teacher_cache.scores import TeacherCache
from recbole_prmkd.teacher_cache.top_items import TopItems, load_or_compute
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.ensemble import ENSEMBLE
from recbole_prmkd.teachers.item_start import source_of
from recbole_prmkd.teachers.pretrained import start
from recbole_prmkd.teachers.trust import PRODUCT

# Called after each validation with the trainer, its training loader, the epoch and the validation score.
AfterEpoch = Callable[[Any, Any, int, float], None]


def make_trainer(config: Config, prepared: Prepared, folder: Path) -> Any:
    """The student, seeded, inside its trainer (`trainer.model`), whose files go to `folder`."""
    split = prepared.split
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    model_class = get_model(config["model"])
    student = model_class(config, split.train_data._dataset).to(config["device"])
    if config["model"] in TEACHERS:
        start(student, config["model"], config)
    if prepared.start_vectors is not None:
        warm_start(student, config, split.dataset, prepared.start_vectors, source_of(config))
    carried = carry_over(student, config, split.dataset) if config["kd_student_checkpoint"] else None
    getLogger().info(student)
    _log_flops(student, config, split)
    host = host_trainer(config, model_class)
    trainer = quiet_trainer(distillation_trainer(host) if has_teachers(config) else host, config, student, folder)
    trainer.carried_over = carried
    return trainer


def train(
    config: Config,
    prepared: Prepared,
    trainer: Any,
    saved: bool,
    after_epoch: AfterEpoch | None = None,
    state: Mapping[str, Any] | None = None,
    before: Callable[[Any, Any], None] | None = None,
) -> tuple[float, dict[str, float], float]:
    """Fit the student; returns RecBole's best validation score and result, and the seconds that all of it took.

    Args:
        saved: keep the best epoch's weights in the trainer's file.
        after_epoch: called after each validation.
        state: what `progress.captured` gave after an earlier epoch, to go on from there.
        before: called with the trainer and its training loader when the first epoch is about to start.
    Raises:
        UserError: training would end before its first validation, so that there were no weights to test.
        NotFinite: the loss became NaN or infinite.
    """
    _check_validations(prepared.split, trainer, saved)
    started = time.time()
    with adapted(config, prepared, trainer) as train_data:
        progress.begin(trainer)
        if state is not None:
            progress.restore(state, trainer, train_data)
            saved = saved and trainer.start_epoch < trainer.epochs  # else RecBole saves the last weights as the best
        if before is not None:
            before(trainer, train_data)

        def callback(epoch: int, score: float) -> None:
            if after_epoch is not None:
                after_epoch(trainer, train_data, epoch, score)

        with overflow_explained(config), same_samples(trainer, config, prepared.split.valid_data):
            score, result = trainer.fit(
                train_data,
                prepared.split.valid_data,
                saved=saved,
                show_progress=config["show_progress"],
                callback_fn=callback,
            )
        history = getattr(trainer, "history", [])
        if history and not any(epoch.get("teaching", 0.0) for epoch in history):
            getLogger().warning(
                "Nothing was distilled: in no epoch an example had two candidates that a teacher covers. Check the "
                "teachers' coverage, the masks, and the curriculum (kd_curriculum=none)."
            )
        return score, result, time.time() - started


def _check_validations(split: Split, trainer: Any, saved: bool) -> None:
    """RecBole saves weights after a validation, or after each epoch where there is none."""
    _, valid, test = split.sizes
    if saved and valid and test and 0 < trainer.epochs < trainer.eval_step:
        raise UserError(
            f"eval_step is {trainer.eval_step}, but this training ends after epoch {trainer.epochs}, so no weights "
            "would be saved for the test: set --eval_step=1, or --eval_step=0 to train without validation."
        )


@contextmanager
def distilled_by_itself(trainer: PRMKDTrainer, train_data: Any, valid_data: Any) -> Iterator[Any]:
    """Inside, a trainer that RecBole's own code has built distils; gives the loader to train on.

    What a run prepares before its student is prepared here, from the trainer's config and loaders.

    Raises:
        UserError: the config names no `kd` that distils, or asks for what cannot be distilled.
    """
    config = complete(trainer.config)
    if not has_teachers(config) or config["kd"] == ENSEMBLE:
        raise UserError(
            f"PRMKDTrainer distils, but kd is {config['kd']}: set kd in the config (kd: prmkd), or use RecBole's own "
            "trainer."
        )
    if config["kd_item_init"] != "none":
        getLogger().warning(
            "kd_item_init has no effect here, since the model is built already: run_recbole_prmkd starts its items so."
        )
        config["kd_item_init"] = "none"
    if config["kd_student_checkpoint"]:
        getLogger().warning("kd_student_checkpoint has no effect here, since the model is built already.")
        config["kd_teacher_refresh"] = "full"
    if config["kd_guard"]:
        getLogger().warning("kd_guard has no effect here: run_recbole_prmkd trains the other students too.")
    check_distillation(config)
    check_teachers(config)
    with split_of_loaders(train_data, valid_data) as split:
        states = progress.random_states()
        given = trainer.teacher_cache
        prepared = prepare_on(config, split, Steps()) if given is None else Prepared(split, given)
        progress.set_random_states(states)  # the same student, whether teachers were there or had to be made
        try:
            with adapted(config, prepared, trainer) as data:
                yield data
        finally:
            trainer.distil_by_itself()  # the next `fit` may have other data


def distils(config: Config) -> bool:
    """Whether kd_loss is in use."""
    return has_teachers(config) and config["kd_weight"] > 0


@contextmanager
def adapted(config: Config, prepared: Prepared, trainer: Any) -> Iterator[Any]:
    """Inside, the student is adapted as the configuration says, and the trainer distils; gives the training loader."""
    split = prepared.split
    student = StudentAdapter(trainer.model, config, split.train_data._dataset, split.train)
    windows = _windows(config, split, trainer.model)
    with ExitStack() as stack:
        if windows is not None or distils(config):
            stack.enter_context(student.attached(windows, _dropout(config, prepared)))
        if prepared.teacher_cache is not None:
            stack.enter_context(all_shown_afterwards(split.train_data))
            trainer.distil(*_objective(config, prepared, student))
        yield WindowLoader(config, split.train_data._dataset, split.train) if windows else split.train_data


def _dropout(config: Config, prepared: Prepared) -> float:
    """Factor on the student's dropout: `kd_dropout`, the nearer to 1 the less the teachers teach."""
    if not distils(config) or prepared.teacher_cache is None:
        return 1.0
    return float(1 - prepared.teacher_cache.trust.strength * (1 - config["kd_dropout"]))


def _objective(
    config: Config, prepared: Prepared, student: StudentAdapter
) -> tuple[Objective | None, Curriculum | None]:
    if not distils(config):
        getLogger().info("kd_weight is 0: the student trains alone, without kd_loss and curriculum.")
        return None, None
    split, cache = prepared.split, prepared.teacher_cache
    assert cache is not None
    if cache.trust.strength == 0:
        getLogger().warning(
            "The teachers together rank the held-out examples no better than popularity, so they do not teach "
            "(kd_teacher_check=weigh): the student trains alone. Give it other teachers, text or vectors."
        )
        return None, None
    _check_vectors(config, cache)
    excluded = exclusions_of(config, split.train, split.future, student.sequential)
    top_items = None
    if "teacher" in SOURCES[config["kd_candidates"]] or cache.trust.gate is not None:
        top_items = top_items_of(config, cache, split.train, excluded)
    objective = Objective(config, cache, split.train, excluded, student, top_items)
    _warn_of_few_covered(prepared)
    if config["kd_curriculum"] == "none":
        return objective, None
    if config["epochs"] <= config["kd_pacing_length"]:
        getLogger().warning(
            f"kd_pacing_length is {config['kd_pacing_length']} and epochs {config['epochs']}: training ends before the "
            "curriculum has shown all examples for an epoch."
        )
    return objective, Curriculum(config, split.train)


def _check_vectors(config: Config, cache: TeacherCache) -> None:
    """After the check of the teachers (`kd_teacher_check=drop`) none with vectors may be left."""
    method, nobody = method_of(config["kd_loss"]), torch.zeros(0, dtype=torch.int64)
    if method is None or not method.vectors:
        return
    if all(teacher.vectors(nobody.numpy(), nobody.to(cache.device)) is None for teacher in cache.teachers):
        names = ", ".join(teacher.name for teacher in cache.teachers)
        raise UserError(
            f"kd_loss={config['kd_loss']} compares vectors, and {names} has none: add a teacher such as UniSRec or "
            "Content, or keep it by --kd_teacher_check=warn."
        )


def _warn_of_few_covered(prepared: Prepared) -> None:
    """At the start, what the teacher caches know: an example without a vector of its history teaches nothing."""
    number = len(prepared.split.train)
    covered = sum(number - folder.notes["unknown_rows"] for folder in prepared.folders)  # at most, of all teachers
    if prepared.folders and 2 * covered < number:
        getLogger().warning(few_teach(f"{covered} of {number} training examples"))


def exclusions_of(config: Config, train: Examples, future: Examples, sequential: bool) -> Exclusions:
    """The items that are no negatives of the training examples, by the settings of the masks.

    Args:
        future: the same examples with the user's future training items as history.
        sequential: whether the student reads histories in order.
    """
    slices = []
    if config["kd_false_negative_mask"]:
        slices.append((future.start, future.stop, future.items))
    # A student without order has its examples' earlier items as false negatives too.
    mask = config["kd_history_mask"] or config["kd_history_negatives"]
    if mask or (config["kd_false_negative_mask"] and not sequential):
        slices.append((train.start, train.stop, train.items))
    method = method_of(config["kd_loss"])
    return Exclusions(slices, train.targets if method is not None and method.without_target else None)


def top_items_of(config: Config, cache: TeacherCache, train: Examples, excluded: Exclusions) -> TopItems:
    """The items that each teacher ranks first for the training examples, or their fused target; `kd_top_items` in all.

    With a gate, the profiles of the teachers' scores too.
    """
    number, product = config["kd_top_items"], config["kd_fusion"] == PRODUCT
    if method_of(config["kd_loss"]) is not None and not product and cache.trust.gate is None:
        number *= len(cache.teachers)  # a baseline's list has that many items, and each teacher may put all first
    root, rebuild = Path(config["kd_cache_dir"]) / config["dataset"], config["kd_rebuild"]
    known = about(train, cache.n_items) if cache.trust.gate is not None else None
    return load_or_compute(
        cache, len(train), number, excluded, excluded.identity(), root, rebuild=rebuild, product=product, about=known
    )


def _windows(config: Config, split: Split, model: AbstractRecommender) -> WindowedModel | None:
    """The model on windows, where shared prefixes are wanted and the model allows them."""
    if not wants_windows(config):
        return None
    reason = why_not_shared(model, config, split.train)
    if reason is not None:
        getLogger().warning(f"{config['model']} is trained example by example, as in RecBole: {reason}.")
        return None
    return WindowedModel(model, config)


def wants_windows(config: Config) -> bool:
    """Whether the student is to be trained on windows, where its class allows it."""
    wanted = config["kd_shared_prefixes"]
    return distils(config) and config["MODEL_TYPE"] == ModelType.SEQUENTIAL if wanted == "auto" else wanted


@contextmanager
def ranking(config: Config, split: Split, student: AbstractRecommender) -> Iterator[None]:
    """Inside, a student trained on windows is ranked without padding, as in the validations of its training."""
    with ExitStack() as stack:
        if wants_windows(config) and why_not_shared(student, config, split.train) is None:
            stack.enter_context(without_padding(student, config))
        yield


def _log_flops(student: AbstractRecommender, config: Config, split: Split) -> None:
    """RecBole's count, which fails for some models and data (DSSM with number features): no reason to stop."""
    try:
        flops = get_flops(student, split.dataset, config["device"], getLogger(), construct_transform(config))
    except Exception as error:  # whatever the counter or the model raises on its one made-up row
        getLogger().warning(f"FLOPs are not counted: RecBole's counter fails on {config['model']} ({error}).")
    else:
        getLogger().info(f"FLOPs: {flops}")
