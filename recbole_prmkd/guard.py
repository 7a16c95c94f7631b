"""`kd_guard`: beside the distilled student the plain and the warm-started one; the best on validation is kept.

All have the same data, seed, epochs, stopping rule and batches. They are trained one after the other, the distilled one
first, exactly as without the guard. The others have folders of their own in `guard/`, with checkpoint, curves and the
state from which a killed training goes on (`results.resume`).
"""

import copy
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from typing import Any, Protocol

import torch
from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader

from recbole_prmkd.errors import UserError
from recbole_prmkd.preparation import Prepared, Steps, start_vectors
from recbole_prmkd.recbole_host.keys import WARM_START, has_teachers
from recbole_prmkd.results.run_folder import RANKS, TEXT, clear_leftovers, move
from recbole_prmkd.results.run_result import Measured
from recbole_prmkd.results.schema import GuardResult, Ranking
from recbole_prmkd.students.warm_start import NoWarmStart
from recbole_prmkd.teachers.auto import missing_text
from recbole_prmkd.teachers.ensemble import ENSEMBLE
from recbole_prmkd.teachers.item_start import source_of
from recbole_prmkd.training import wants_windows

GUARD = "guard"  # inside the folder that a run works in

Timed = Callable[[str], AbstractContextManager[Any]]  # a step by its name


class TrainAndTest(Protocol):
    """Trains and tests one student; place: the folder inside `folder` that is its own."""

    def __call__(self, config: Config, prepared: Prepared, steps: Timed, folder: Path, place: str = "") -> Measured: ...


def guards(config: Config) -> bool:
    """Whether this run distils a student under guard."""
    return bool(config["kd_guard"]) and has_teachers(config) and config["kd"] != ENSEMBLE


def keep_best(
    config: Config, prepared: Prepared, steps: Steps, folder: Path, student: TrainAndTest
) -> tuple[Measured, Measured, GuardResult]:
    """Train and test every student; in `folder` are then the files of the one that is kept.

    Returns:
        the student that is kept, the distilled one, and what result.json says of the choice.
    Raises:
        UserError: there is no validation example to choose by.
    """
    if prepared.split.sizes[1] == 0:
        raise UserError(
            "kd_guard keeps the best student on validation, but the validation part is empty: give it examples in "
            "eval_args.split, or leave kd_guard out."
        )
    others = _others(config, prepared, steps)
    start = [(generator, generator.get_state()) for generator in _generators(prepared)]
    measured = {config["kd"]: student(config, prepared, steps, folder)}
    for kd, (own, of_it) in others.items():
        _forget(prepared, start)
        clear_leftovers(folder / GUARD / kd)
        (folder / GUARD / kd).mkdir(parents=True, exist_ok=True)
        try:
            measured[kd] = student(own, of_it, _named(steps, kd), folder, f"{GUARD}/{kd}")
        except NoWarmStart as error:
            getLogger().warning(f"kd_guard trains no warm-started student: {error}")
    scores = {kd: each.score for kd, each in measured.items()}
    kept = best_of(scores, config["valid_metric_bigger"])
    shown = ", ".join(f"{kd} {score:.4f}" for kd, score in scores.items())
    getLogger().info(f"kd_guard keeps {kept}: best validation {config['valid_metric']} {shown}.")
    _take_out(folder, kept, others, f"{config['model']}.pth")
    valid = {kd: score if math.isfinite(score) else None for kd, score in scores.items()}
    students = {
        kd: Ranking(**{part: getattr(each.student, part) for part in Ranking.model_fields})
        for kd, each in measured.items()
    }
    return measured[kept], measured[config["kd"]], GuardResult(kept=kept, valid=valid, students=students)


def best_of(scores: Mapping[str, float], bigger: bool) -> str:
    """The `kd` with the best score; of equal ones the simplest. bigger: whether a larger score is the better one."""

    def place(kd: str) -> tuple[float, bool, bool]:
        score = scores[kd] if bigger else -scores[kd]
        return (-math.inf if math.isnan(score) else score, kd == "none", kd == WARM_START)

    return max(scores, key=place)


def _others(config: Config, prepared: Prepared, steps: Steps) -> dict[str, tuple[Config, Prepared]]:
    """Settings and inputs of the students without teachers, by their `kd`; all else is the distilled one's."""
    # Validations that rank samples rank the same ones for all (`evaluation.same_samples`).
    alike = {"kd_protocol": "ranking", "kd_shared_prefixes": wants_windows(config)}
    alone = replace(prepared, teacher_cache=None, start_vectors=None)
    others = {"none": (_with(config, kd="none", kd_item_init="none", **alike), alone)}
    reason = missing_text(config)
    if reason is not None:
        getLogger().info(f"kd_guard trains no warm-started student: {reason}")
        return others
    warm = _with(config, kd=WARM_START, kd_item_init="text", **alike)
    vectors = prepared.start_vectors
    if source_of(config) != "text":
        vectors = start_vectors(warm, prepared.split, steps, prepared.teachers)
    return {**others, WARM_START: (warm, replace(alone, start_vectors=vectors))}


def _with(config: Config, **settings: Any) -> Config:
    """A copy of the configuration with other settings."""
    other = copy.copy(config)
    other.final_config_dict = {**config.final_config_dict, **settings}
    return other


def _generators(prepared: Prepared) -> Iterator[torch.Generator]:
    """The random generators of the loaders, which a training moves on; all others are seeded with the student."""
    split = prepared.split
    for loader in (split.train_data, split.valid_data, split.test_data):
        for part in (loader, *vars(loader).values()):  # a loader may hold others (graph and items)
            if isinstance(part, AbstractDataLoader) and part.generator is not None:
                yield part.generator


def _forget(prepared: Prepared, start: list[tuple[torch.Generator, torch.Tensor]]) -> None:
    """Let go of the student before, and put the loaders back to where its training began."""
    for generator, state in start:
        generator.set_state(state)
    for part in (prepared.split.train_data, *vars(prepared.split.train_data).values()):
        if isinstance(part, AbstractDataLoader):
            part.model = None
    gc.collect()  # a trainer refers to itself


def _named(steps: Steps, kd: str) -> Timed:
    """The same steps under names of their own."""
    return lambda name: steps(f"{name} {kd}")


def _take_out(folder: Path, kept: str, others: Mapping[str, Any], checkpoint: str) -> None:
    """Put the kept student's files in the place of the distilled one's, and all curves beside each other."""
    for kd in others:
        place = folder / GUARD / kd
        for name in (checkpoint, RANKS, TEXT) if kd == kept else ():
            if (place / name).is_file():
                move(place / name, folder / name)
        if (place / "tensorboard").is_dir():
            move(place / "tensorboard", folder / "tensorboard" / kd)
