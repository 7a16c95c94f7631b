"""What serving takes: milliseconds per 1,000 users ranked over all items, for each student and each teacher.

One process measures all of them in turns, so that a busy machine disturbs all alike. The plain student is loaded and
timed twice: how far its two times differ is the noise that a ratio has to be read against.

Users come in batches of 64 for all of them, at most 1,000, fewer where a model is slow.

- a student: its `full_sort_predict` as RecBole's evaluation calls it (item by item where it has none), and the 10 best
  items; a graph student propagates once, before
- a teacher: its items are encoded once, before; encoding the histories, all cosines and the 10 best items are timed
- the ensemble: all its teachers like that, and the mean of their normalised scores
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.utils import get_model, get_trainer, init_seed
from torch import Tensor

from recbole_prmkd.compare.grid import BASELINE
from recbole_prmkd.data.split import Split
from recbole_prmkd.preparation import Prepared, Steps, prepare
from recbole_prmkd.recbole_host.own_checkpoint import read_own
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.storage.json_files import read_object, write_sealed
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.ensemble import ENSEMBLE, fused_scores
from recbole_prmkd.teachers.fit import FittedTeacher

COSTS = "cost.json"
AGAIN = "the plain student again"
_USERS, _BATCH, _TOP = 1000, 64, 10  # users in all and at a time, items that are picked
_PAIRS = 1 << 17  # (user, item) pairs at a time of students that score pair by pair, at least
_FEWEST, _MOST = 15, 500  # rounds
BUDGET = 30.0  # seconds of all rounds, where the fewest do not take longer
_MAX_SECONDS = 2.0  # of one round of a model; slower ones are timed on fewer users


@dataclass
class Timed:
    """A student, a teacher or the ensemble.

    scores: of a batch of test users, by its number, over all items [B, n_items]. users: of each batch.
    """

    scores: Callable[[int], Tensor]
    users: list[int]
    seconds: list[float] = field(default_factory=list)  # of each round

    def __post_init__(self) -> None:
        """Leave out the batches for which it is too slow; fills its caches, too."""
        spent, batch = 0.0, 0
        while batch < len(self.users) and spent <= _MAX_SECONDS:
            spent += self.rank([batch])
            batch += 1
        self.users = self.users[:batch]

    @torch.no_grad()
    def rank(self, batches: Sequence[int] | None = None) -> float:
        """Rank the users of all batches, or of these; returns the seconds that it took."""
        begin = time.perf_counter()
        for batch in range(len(self.users)) if batches is None else batches:
            scores = self.scores(batch)
            torch.topk(scores, min(_TOP, scores.shape[1]), dim=-1).indices.cpu()  # so that a GPU has done its work
        return time.perf_counter() - begin

    def times(self) -> dict[str, float]:
        """Milliseconds per 1,000 users: median over the rounds, and what a tenth of them lies below and above."""
        low, *_, high = statistics.quantiles(self.seconds, n=10)
        found = {"ms": statistics.median(self.seconds), "low": low, "high": high}
        return {name: 1e6 * seconds / sum(self.users) for name, seconds in found.items()}

    def against(self, plain: "Timed | None") -> dict[str, Any]:
        """The same with the median ratio to the student alone in the same rounds, and the number of users."""
        pairs = zip(self.seconds, plain.seconds if plain else [], strict=False)
        ratios = [own / other * sum(plain.users if plain else []) / sum(self.users) for own, other in pairs]
        return {**self.times(), "ratio": statistics.median(ratios) if ratios else None, "users": sum(self.users)}


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
    again = {AGAIN: stored[BASELINE]} if BASELINE in stored else {}
    trainers = {kd: _student(own, prepared.split, path) for kd, (own, path) in {**stored, **again}.items()}
    students = _time_students(trainers, prepared.split)
    teachers, together = _time_teachers(config, prepared, ensemble)
    everything = [*students.values(), *teachers.values(), *together.values()]
    _in_turns(everything)
    plain = students.get(BASELINE)
    entries = {
        kd: students[kd].against(plain) | {"parameters": _parameters(trainer.model), "bytes": _bytes(trainer.model)}
        for kd, trainer in trainers.items()
    }
    if ensemble:
        entries[ENSEMBLE] = {
            "parameters": sum(teacher.parameters for teacher in prepared.teachers),
            "bytes": sum(_bytes(teacher.model) for teacher in prepared.teachers),
            **(together[ENSEMBLE].against(plain) if together else {}),
        }
    content = {
        "device": torch.cuda.get_device_name(config["device"]) if config["device"].type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "rounds": len(everything[0].seconds),
        "students": entries,
        "teachers": {
            teacher.name: (teachers[teacher.name].times() if teacher.name in teachers else {})
            | {"parameters": teacher.parameters}
            for teacher in prepared.teachers
        },
    }
    write_sealed(file, content)


def read_costs(file: Path) -> dict[str, Any] | None:
    """What an earlier measurement left; None where there is none."""
    try:
        content = read_object(file)
    except (OSError, ValueError):  # measured again
        return None
    return content if isinstance(content.get("students"), dict) and isinstance(content.get("teachers"), dict) else None


def _student(config: Config, split: Split, checkpoint: Path) -> Any:
    """The stored student inside a trainer, which ranks with it."""
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, split.train_data._dataset).to(config["device"])
    content = read_own(checkpoint, config, model)
    model.load_state_dict(content["state_dict"])
    model.load_other_parameter(content.get("other_parameter"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # its writer may still write
        trainer = quiet_trainer(get_trainer(config["MODEL_TYPE"], config["model"]), config, model.eval(), Path(folder))
    trainer.test_batch_size = max(trainer.test_batch_size, _PAIRS)
    trainer.tot_item_num = split.test_data._dataset.item_num
    trainer.item_tensor = split.test_data._dataset.get_item_feature().to(trainer.device)
    return trainer


def _time_students(trainers: Mapping[str, Any], split: Split) -> dict[str, Timed]:
    loader: Any = split.test_data
    index = torch.arange(min(_USERS, loader.sample_size)).split(_BATCH)  # RecBole's own may be of one user each
    batches = [loader.collate_fn(batch.tolist()) for batch in index]

    def scores(trainer: Any) -> Callable[[int], Tensor]:
        return lambda batch: trainer._full_sort_batch_eval(batches[batch])[1]

    return {kd: Timed(scores(trainer), list(map(len, index))) for kd, trainer in trainers.items()}


@torch.no_grad()
def _time_teachers(config: Config, prepared: Prepared, ensemble: bool) -> tuple[dict[str, Timed], dict[str, Timed]]:
    """Teachers, and the ensemble of all; of an external model only vectors are there, so it cannot be timed."""
    if not prepared.teachers:
        return {}, {}
    data = teacher_data(prepared.split, config["kd_teacher_seed"])
    index = torch.arange(min(_USERS, len(data.test))).split(_BATCH)
    users = list(map(len, index))

    def encoder(teacher: FittedTeacher) -> Callable[[int], tuple[Teacher, Tensor, Tensor]]:
        """Encodes a batch's histories [B, D]; returns the teacher, them, and its items [n_items, D]."""
        model, items, examples = teacher.model, teacher.model.encode_items(), data.dataset(teacher.config, data.test)
        batches = [examples[batch].to(teacher.config["device"]) for batch in index]
        return lambda batch: (model, model.encode_batch(batches[batch], items), items)

    def scores(encode: Callable[[int], tuple[Teacher, Tensor, Tensor]]) -> Callable[[int], Tensor]:
        def cosines(batch: int) -> Tensor:
            model, histories, items = encode(batch)
            return model.scores(histories, items)

        return cosines

    encoders = {teacher.name: encoder(teacher) for teacher in prepared.teachers if not teacher.model.reads_examples}
    teachers = {name: Timed(scores(encode), users) for name, encode in encoders.items()}
    if not ensemble or len(encoders) < len(prepared.teachers):
        return teachers, {}
    alike = [1.0] * len(encoders)
    together = Timed(lambda batch: fused_scores((each(batch) for each in encoders.values()), alike), users)
    return teachers, {ENSEMBLE: together}


def _in_turns(everything: Sequence[Timed]) -> None:
    """Time all in rounds; short rounds are more in number, and every round starts with another one."""
    once = sum(each.rank() for each in everything)
    for turn in range(min(_MOST, max(_FEWEST, math.ceil(BUDGET / once)))):
        first = turn % len(everything)
        for each in (*everything[first:], *everything[:first]):
            each.seconds.append(each.rank())


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _bytes(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())
