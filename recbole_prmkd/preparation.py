"""What a student is prepared from: data -> item text -> teachers -> teacher cache -> item vectors to start from.

A plain run does this for itself; a sweep does it once, and hands the product to its trials.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any

from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.utils import set_color
from torch import Tensor

from recbole_prmkd.data.bounds import check_bounds, check_labels
from recbole_prmkd.data.split import Split, load_split
from recbole_prmkd.data.text import item_text_vectors, prepare_item_text
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.boundary import recbole_errors
from recbole_prmkd.recbole_host.keys import has_teachers, keys_of_teachers
from recbole_prmkd.results.schema import StepResult, TextResult
from recbole_prmkd.storage.store import StoredFolder
from recbole_prmkd.teacher_cache.build import build_or_load, open_cache
from recbole_prmkd.teacher_cache.scores import TeacherCache
from recbole_prmkd.teacher_cache.vectors import unit_items
from recbole_prmkd.teachers import TEACHERS, teacher_class
from recbole_prmkd.teachers.data import TeacherData, teacher_data
from recbole_prmkd.teachers.fit import FittedTeacher, fit_or_load
from recbole_prmkd.teachers.item_start import source_of, useful_source
from recbole_prmkd.teachers.trust import decided


class Steps:
    """Times each step and says when it starts and whether it was reused."""

    def __init__(self) -> None:
        self.results: dict[str, StepResult] = {}
        self.item_text: TextResult | None = None  # how texts were encoded, in either step that wants their vectors

    @contextmanager
    def __call__(self, name: str) -> Iterator[dict[str, Any]]:
        """Run a step; set `reused` in the dict that it yields."""
        started, state = time.time(), {"reused": None}
        getLogger().info(set_color(f"Step: {name}", "green"))
        yield state
        seconds = time.time() - started
        self.results[name] = StepResult(seconds=seconds, reused=state["reused"])
        how = {None: "done", True: "reused", False: "made"}[state["reused"]]
        getLogger().info(f"Step: {name} {how} in {seconds:.1f} s")


@dataclass(frozen=True)
class Prepared:
    """All that a student is made from.

    teacher_cache: None without distillation. teachers: those that it was computed from; none in a trial of a sweep.
    folders: each teacher's stored cache. start_vectors: [n_items, D] that `kd_item_init` names, or None.
    """

    split: Split
    teacher_cache: TeacherCache | None = None
    teachers: list[FittedTeacher] = field(default_factory=list)
    folders: list[StoredFolder] = field(default_factory=list)
    start_vectors: Tensor | None = None


def prepare(config: Config, steps: Steps, on_read: Callable[[Dataset], None] | None = None) -> Prepared:
    """Data, teachers and teacher cache; each taken from disk where it still matches, else made.

    on_read: called with the data set before it is split.
    """
    _warn_of_unnamed(config)
    with steps("data"):
        split = load_split(config, on_read)
    check_bounds(config, split.dataset.item_num, *split.sizes[1:])
    check_labels(config, split.valid_data, split.test_data)
    return prepare_on(config, split, steps)


def prepare_on(config: Config, split: Split, steps: Steps) -> Prepared:
    """The same on data that is there already."""
    teachers: list[FittedTeacher] = []
    folders: list[StoredFolder] = []
    cache = None
    if has_teachers(config):
        teachers, folders, cache = prepare_teachers(config, split, steps)
    vectors = None
    if source_of(config) != "none":
        ranked = {teacher.name: teacher.ranked for teacher in teachers}
        if useful_source(config, ranked, split) != "none":
            vectors = start_vectors(config, split, steps, teachers)
    return Prepared(split, cache, teachers, folders, vectors)


def prepare_teachers(
    config: Config, split: Split, steps: Steps
) -> tuple[list[FittedTeacher], list[StoredFolder], TeacherCache]:
    """Item text, teachers and teacher cache; each taken from disk where it still matches."""
    for reason in vars(config).pop("why_teachers", []):
        getLogger().info(f"kd_teachers=auto takes {reason}")
    wanted = {teacher_class(name).item_text for name in config["kd_teachers"]}
    if wanted != {"nothing"}:
        with steps("text") as state:
            state["reused"] = _item_text(config, split, steps, vectors="vectors" in wanted)
    data: TeacherData = teacher_data(split, config["kd_teacher_seed"])
    teachers: list[FittedTeacher] = []
    folders: list[StoredFolder] = []
    for name in config["kd_teachers"]:
        with steps(f"teacher {name}") as state, recbole_errors(f"fit the teacher {name}", config, teacher=name):
            teacher = fit_or_load(name, config, data)
            _warn_of_equal(teacher, teachers)
            _warn_of_cuts(teacher, data)
            teachers.append(teacher)
            state["reused"] = teacher.reused
    teaching, trust = decided(config, {teacher.name: teacher.ranked for teacher in teachers}, data, say=True)
    teachers = [teacher for teacher in teachers if teacher.name in teaching]
    for teacher in teachers:
        name = teacher.name
        with steps(f"knowledge {name}") as state, recbole_errors(f"encode with {name}", config, teacher=name):
            stored, state["reused"] = build_or_load(teacher, data, config)
            folders.append(stored)
            _warn_of_uncovered(name, stored.notes, split)
    _warn_of_left_out_metrics(config, teachers)
    return teachers, folders, open_cache(teachers, folders, data, config, trust)


def _item_text(config: Config, split: Split, steps: Steps, vectors: bool = True) -> bool:
    notes: dict[str, Any] = {}
    reused = prepare_item_text(config, split.item_tokens, vectors=vectors, notes=notes)
    steps.item_text = TextResult(**notes) if notes else steps.item_text
    return reused


def start_vectors(config: Config, split: Split, steps: Steps, teachers: Sequence[FittedTeacher]) -> Tensor:
    """What `kd_item_init` names: vectors of all items by the student's ids, [n_items, D]; zero where there is none."""
    source = source_of(config)
    with steps(f"item vectors {source}") as state:
        if source == "text":
            state["reused"] = _item_text(config, split, steps)
            return item_text_vectors(config, split.dataset)
        data = teacher_data(split, config["kd_teacher_seed"])
        named = [teacher for teacher in teachers if teacher.name == source]
        with recbole_errors(f"fit the teacher {source}", config, teacher=source):
            teacher = named[0] if named else fit_or_load(source, config, data)
        state["reused"] = teacher.reused
        return unit_items(teacher)[data.canonical]


def _warn_of_unnamed(config: Config) -> None:
    if left_out := vars(config).pop("left_out_teachers", []):
        getLogger().warning(f"kd={config['kd']} has no use for teachers: {', '.join(left_out)} are left out.")
    if config["kd"] == "single":  # takes the first teacher that the user has named
        return
    named = [*config["kd_teachers"], config["kd_item_init"]]
    model = config["model"] if not has_teachers(config) else None
    for key, (teacher, _) in keys_of_teachers(config.parameters["Distillation"], TEACHERS).items():
        own = key.removeprefix(f"kd_{teacher.lower()}_")
        if teacher == model and own != "checkpoint":
            getLogger().warning(f"{key} has no effect here: {teacher} is the model, so set {own} itself.")
        elif teacher not in (*named, model):
            getLogger().warning(f"{key} has no effect here: no teacher {teacher} is named.")


def _warn_of_equal(teacher: FittedTeacher, others: Sequence[FittedTeacher]) -> None:
    same = next((other.name for other in others if other.digest == teacher.digest), None)
    if same:
        getLogger().warning(
            f"{teacher.name} is {same} once more, by equal settings and seed: give one of its "
            f"kd_{teacher.name.lower()}_ keys another value."
        )


def _warn_of_left_out_metrics(config: Config, teachers: Sequence[FittedTeacher]) -> None:
    measured = {metric.lower() for teacher in teachers for metric in teacher.config["metrics"]}
    left_out = [metric for metric in config["metrics"] if metric.lower() not in measured]
    if teachers and left_out:
        getLogger().warning(
            f"Teachers have no {', '.join(left_out)} in the result: these metrics count a whole data set, and teachers "
            "are measured on examples."
        )


def _warn_of_cuts(teacher: FittedTeacher, data: TeacherData) -> None:
    items, examples = teacher.cuts.get("cut_items", 0), teacher.cuts.get("cut_rows", 0)
    if items or examples:
        prefix = f"--kd_{teacher.name.lower()}_"
        getLogger().warning(
            f"{teacher.name} cuts the texts of {items} of {len(data.item_tokens)} items ({prefix}max_attr_length, "
            f"{prefix}max_attr_num) and the histories of {examples} of {len(data.train)} training examples "
            f"({prefix}max_token_num): raise these to keep more."
        )


def _warn_of_uncovered(name: str, notes: Mapping[str, Any], split: Split) -> None:
    for part, number, of in (
        ("items", "unknown_items", split.item_tokens),
        ("training examples", "unknown_rows", split.train),
    ):
        if notes[number] == len(of):
            raise UserError(
                f"{name} covers none of the {len(of)} {part}, since it has no finite vector of any: leave it out of "
                "kd_teachers, or give it other text, vectors or checkpoint."
            )
    if notes["unknown_rows"] or notes["unknown_items"]:
        getLogger().warning(
            f"{name} does not cover {notes['unknown_rows']} of {len(split.train)} training examples (no history) and "
            f"{notes['unknown_items']} of {len(split.item_tokens)} items (nothing that it reads of them): its weight "
            "is zero there."
        )
