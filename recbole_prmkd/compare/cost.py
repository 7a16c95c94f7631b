"""What serving takes: milliseconds per 1,000 users ranked over all items, for each student and each teacher.

One process measures all of them in turns, so that a busy machine disturbs all alike. The plain student is loaded and
timed twice: how far its two times differ is the noise that a ratio has to be read against.

Users come in batches of 64 for all of them.

- a student: its `full_sort_predict` as RecBole's evaluation calls it (item by item where it has none), and the 10 best
  items; a graph student propagates once, before
- a teacher: its items are encoded once, before; encoding the histories, all cosines and the 10 best items are timed
- the ensemble: all its teachers like that, and the mean of their normalised scores
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer, init_seed
from torch import Tensor

from recbole_prmkd.compare.grid import BASELINE
from recbole_prmkd.data.split import Split
from recbole_prmkd.preparation import Prepared, Steps, prepare
from recbole_prmkd.recbole_host.compat import full_pickle
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.teacher_cache import store
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.data import TeacherData, teacher_data
from recbole_prmkd.teachers.ensemble import ENSEMBLE, mean_scores
from recbole_prmkd.teachers.fit import FittedTeacher

COSTS = "cost.json"
AGAIN = "the plain student again"
_USERS, _BATCH, _TOP = 1000, 64, 10  # users in all and at a time, items that are picked
_PAIRS = 1 << 17  # (user, item) pairs at a time of students that score pair by pair, at least
_FEWEST, _MOST = 15, 500  # rounds
_BUDGET = 30.0  # seconds of all rounds, where the fewest do not take longer
_LONGEST = 2.0  # seconds of one pass; slower models are timed on fewer users

ForwardPass = Callable[[], Any]


@dataclass(frozen=True)
class Served:
    """A teacher that is timed: its items [n_items, D], encoded once, and the users' histories in batches."""

    teacher: FittedTeacher
    items: Tensor
    batches: list[Interaction]

    def encoded(self, batch: int) -> tuple[Teacher, Tensor, Tensor]:
        """The teacher, a batch's histories [B, D], encoded now, and the items."""
        model = self.teacher.model
        return model, model.encode_batch(self.batches[batch], self.items), self.items

    def scores(self, batch: int) -> Tensor:
        """Cosines of a batch's users with all items, [B, n_items]."""
        model, histories, items = self.encoded(batch)
        return model.cosine(histories, items)


def measure_costs(
    config: Config, stored: Mapping[str, tuple[Config, Path]], file: Path, ensemble: bool = False
) -> None:
    """Time students and teachers; writes `cost.json`.

    Args:
        config: names the data and the teachers.
        stored: by `kd`, a student's configuration and checkpoint.
        ensemble: time the teachers served together too.
    """
    prepared = prepare(config, Steps())
    students = {kd: _student(own, prepared.split, path) for kd, (own, path) in stored.items()}
    if BASELINE in stored:
        students[AGAIN] = _student(stored[BASELINE][0], prepared.split, stored[BASELINE][1])
    batches, users = _test_batches(next(iter(students.values())), prepared.split)
    forward_passes = {kd: _student_pass(trainer, batches) for kd, trainer in students.items()}
    served = _served(config, prepared)
    teachers = {one.teacher.name: _pass_of([one]) for one in served}
    together = {ENSEMBLE: _pass_of(served)} if ensemble and served and len(served) == len(prepared.teachers) else {}
    taken = _in_turns({**forward_passes, **{name: each for name, (each, _) in {**teachers, **together}.items()}})
    plain = taken.get(BASELINE)
    content = {
        "device": _device(config),
        "threads": torch.get_num_threads(),
        "rounds": len(next(iter(taken.values()))),
        "students": {
            kd: {
                **_per_thousand(taken[kd], users),
                "ratio": statistics.median(a / b for a, b in zip(taken[kd], plain, strict=True)) if plain else None,
                "users": users,
                "parameters": _parameters(students[kd].model),
                "bytes": sum(tensor.nbytes for tensor in students[kd].model.state_dict().values()),
            }
            for kd in students
        }
        | ({ENSEMBLE: _of_ensemble(prepared, together, taken, users)} if ensemble else {}),
        "teachers": {
            teacher.name: {
                **(_per_thousand(taken[teacher.name], teachers[teacher.name][1]) if teacher.name in teachers else {}),
                "parameters": teacher.parameters,
            }
            for teacher in prepared.teachers
        },
    }
    store.write_json(file, content)


def read_costs(file: Path) -> dict[str, Any] | None:
    """What an earlier measurement left; None where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _student(config: Config, split: Split, checkpoint: Path) -> Any:
    """The stored student inside a trainer, which knows how to rank with it."""
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, split.train_data._dataset).to(config["device"])
    with full_pickle():  # RecBole's own file, which pickles its Config
        content = torch.load(checkpoint, map_location=config["device"])
    model.load_state_dict(content["state_dict"])
    model.load_other_parameter(content.get("other_parameter"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # its writer may still write
        trainer = quiet_trainer(get_trainer(config["MODEL_TYPE"], config["model"]), config, model.eval(), Path(folder))
    trainer.test_batch_size = max(trainer.test_batch_size, _PAIRS)
    trainer.tot_item_num = split.test_data._dataset.item_num
    trainer.item_tensor = split.test_data._dataset.get_item_feature().to(trainer.device)
    return trainer


def _test_batches(trainer: Trainer, split: Split) -> tuple[list[Any], int]:
    """Test rows that all students are timed on, and their users: at most 1,000, fewer where a student is slow."""
    loader: Any = split.test_data
    batches: list[Any] = []
    users, spent = 0, 0.0
    for index in torch.arange(min(_USERS, loader.sample_size)).split(_BATCH):
        batches.append(loader.collate_fn(index.tolist()))  # RecBole's own batches have a user each where items are many
        users += len(index)
        spent += _seconds(lambda: _rank(trainer, batches[-1]))
        if spent > _LONGEST:
            break
    return batches, users


def _student_pass(trainer: Trainer, batches: list[Any]) -> ForwardPass:
    def rank_all() -> None:
        for batch in batches:
            _rank(trainer, batch)

    rank_all()  # not timed: caches
    return rank_all


@torch.no_grad()
def _rank(trainer: Any, batch: Any) -> Tensor:
    _, scores, _, _ = trainer._full_sort_batch_eval(batch)
    return torch.topk(scores, min(_TOP, scores.shape[1]), dim=-1).indices.cpu()


def _served(config: Config, prepared: Prepared) -> list[Served]:
    """Those teachers that are models here; an external model is known by its vectors alone."""
    if not prepared.teachers:
        return []
    data = teacher_data(prepared.split, config["kd_teacher_seed"])
    return [_histories(teacher, data) for teacher in prepared.teachers if teacher.model.learns]


@torch.no_grad()
def _histories(teacher: FittedTeacher, data: TeacherData) -> Served:
    """The teacher with its items, and the histories of at most 1,000 users, fewer where it is slow."""
    rows = data.dataset(teacher.config, data.test)
    served, spent = Served(teacher, teacher.model.encode_items(), []), 0.0
    for index in torch.arange(min(_USERS, len(data.test))).split(_BATCH):
        served.batches.append(rows[index].to(teacher.config["device"]))
        spent += _seconds(lambda: served.scores(-1))
        if spent > _LONGEST:
            break
    return served


def _pass_of(served: Sequence[Served]) -> tuple[ForwardPass, int]:
    """A pass over the users that all of these have, and how many they are: one teacher, or several as an ensemble."""
    batches = min(len(one.batches) for one in served)

    @torch.no_grad()
    def rank_all() -> None:
        for batch in range(batches):
            alone = len(served) == 1
            scores = served[0].scores(batch) if alone else mean_scores(one.encoded(batch) for one in served)
            torch.topk(scores, min(_TOP, scores.shape[1]), dim=-1).indices.cpu()

    return rank_all, sum(map(len, served[0].batches[:batches]))


def _of_ensemble(
    prepared: Prepared, together: Mapping[str, tuple[ForwardPass, int]], taken: Mapping[str, list[float]], users: int
) -> dict[str, Any]:
    """The ensemble's line; without times where one of its teachers has none. users: those of the students' passes."""
    line: dict[str, Any] = {
        "parameters": sum(teacher.parameters for teacher in prepared.teachers),
        "bytes": sum(tensor.nbytes for one in prepared.teachers for tensor in one.model.state_dict().values()),
    }
    if ENSEMBLE not in together:
        return line
    own, number = taken[ENSEMBLE], together[ENSEMBLE][1]
    pairs = zip(own, taken.get(BASELINE, []), strict=False)
    ratios = [users * a / (number * b) for a, b in pairs]
    ratio = statistics.median(ratios) if ratios else None
    return {**line, **_per_thousand(own, number), "ratio": ratio, "users": number}


def _in_turns(forward_passes: Mapping[str, ForwardPass]) -> dict[str, list[float]]:
    """Seconds of each pass in each round; short passes get more rounds, every round starts with another pass."""
    taken: dict[str, list[float]] = {name: [] for name in forward_passes}
    names = list(forward_passes)
    once = sum(_seconds(each) for each in forward_passes.values())
    for turn in range(min(_MOST, max(_FEWEST, math.ceil(_BUDGET / once)))):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(_seconds(forward_passes[name]))
    return taken


def _seconds(each: ForwardPass) -> float:
    """Seconds of a pass, which ends with a copy to the CPU, so that a GPU has done its work."""
    begin = time.perf_counter()
    each()
    return time.perf_counter() - begin


def _per_thousand(seconds: list[float], users: int) -> dict[str, float]:
    """Milliseconds per 1,000 users: median over the rounds, and what a tenth of them lies below and above."""
    low, *_, high = statistics.quantiles(seconds, n=10)
    return {
        name: 1e6 * each / users for name, each in (("ms", statistics.median(seconds)), ("low", low), ("high", high))
    }


def _parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _device(config: Config) -> str:
    if config["device"].type == "cuda":
        return torch.cuda.get_device_name(config["device"])
    return "CPU"
