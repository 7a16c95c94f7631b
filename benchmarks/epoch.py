"""Cost of a distilled training epoch against a stock RecBole epoch, and where the time goes.

python benchmarks/epoch.py --dataset=ml-100k --models=SASRec,GRU4Rec,BERT4Rec,DeepFM,LightGCN,BPR

Three teachers of random vectors, as wide as real ones, stand in a cache: what they say does not change the cost. Plain:
RecBole's own training on its own loader. "same batches": the same with kd_loss. "shared prefixes": with kd_loss on
windows, for students that can. Seconds are per training row, in turns in one run; `ratio` is ours over RecBole's.
`parts`: shares of the distilled time; the rest is the student's own step and all gradients. One JSON object a line.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measure import device_name, in_turns, report, table
from recbole.config import Config
from recbole.utils import ModelType, get_model, get_trainer, init_seed
from synthetic import random_knowledge

from recbole_prmkd.data.examples import EXAMPLE
from recbole_prmkd.data.split import Split, load_split
from recbole_prmkd.distil.objective import Objective
from recbole_prmkd.distil.trainer import distillation_trainer
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.memory import keep_freed_memory
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.students.windows import WindowLoader, shared_prefixes, why_not_shared
from recbole_prmkd.teacher_cache.scores import TeacherCache

WIDTHS = (300, 384, 300)  # UniSRec, Recformer from MiniLM, UniM2Rec
PARTS = {
    "cosines": (TeacherCache, "cosines"),
    "weighting": (Objective, "_fused"),
    "student": (StudentAdapter, "scores"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default=None)
    parser.add_argument("--models", default="SASRec,GRU4Rec,BERT4Rec,DeepFM,LightGCN,BPR")
    parser.add_argument("--batches", type=int, default=6, help="batches of a sequential epoch that are timed; 0: all")
    parser.add_argument("--max_candidates", default=None, help="kd_max_candidates of the distilled epoch, or None")
    parser.add_argument("--max_rows", default=None, help="kd_max_rows of the distilled epoch")
    parser.add_argument("--every", default=None, help="kd_every of the distilled epoch")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does, for both sides of a ratio
    settings = {"kd": "prmkd_v1", "show_progress": False}
    for key in ("max_candidates", "max_rows", "every"):
        if getattr(arguments, key):
            settings[f"kd_{key}"] = getattr(arguments, key)
    if arguments.data_path:
        settings["data_path"] = arguments.data_path
    for model in arguments.models.split(","):
        config = load_config(model, arguments.dataset, config_dict=settings)
        split = load_split(config)
        # Where few batches have a kd_loss (kd_every), as of the other students, a part of an epoch would not tell.
        some = arguments.batches if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and not arguments.every else 0
        compare(config, split, some or len(split.train_data), arguments.runs)
    print(table())


def compare(config: Config, split: Split, batches: int, runs: int) -> None:
    """Report one model, with and without windows."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plain = trainer_of(config, split, Path(folder), distilled=False)
        ours = trainer_of(config, split, Path(folder), distilled=True)
        stock = First(split.train_data, batches)
        show("epoch, same batches", config, runs, (plain, stock), (ours, stock))
        if config["MODEL_TYPE"] != ModelType.SEQUENTIAL or why_not_shared(plain.model, config, split.train):
            return
        ours = trainer_of(config, split, Path(folder), distilled=False)
        stack.enter_context(shared_prefixes(ours.model))
        windows = WindowLoader(config, split.train_data._dataset, split.train)
        ours = distil(ours, config, split)
        show("epoch, shared prefixes", config, runs, (plain, stock), (ours, First(windows, batches)))


class First:
    """A loader's first batches; counts the positive rows in them."""

    shuffle = False

    def __init__(self, loader: Any, number: int) -> None:
        self.loader, self.number, self.rows = loader, min(number, len(loader)), 0

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Any]:
        self.rows = 0
        for batch in itertools.islice(self.loader, self.number):
            self.rows += len(torch.unique(batch[EXAMPLE]))
            yield batch


def trainer_of(config: Config, split: Split, folder: Path, distilled: bool) -> Any:
    """The student in RecBole's trainer, or in ours."""
    init_seed(config["seed"], True)
    model = get_model(config["model"])(config, split.train_data._dataset).to(config["device"])
    host = distillation_trainer(get_trainer(config["MODEL_TYPE"], config["model"]))
    trainer = quiet_trainer(host, config, model, folder)
    return distil(trainer, config, split) if distilled else trainer


def distil(trainer: Any, config: Config, split: Split) -> Any:
    """The trainer with kd_loss from random teachers."""
    knowledge = random_knowledge(len(split.item_tokens) + 1, len(split.train), WIDTHS, config["device"])
    scorer = StudentAdapter(trainer.model, config, split.train_data._dataset, split.train)
    trainer.distil(Objective(config, knowledge, split.train, split.future, scorer), None)
    return trainer


def show(benchmark: str, config: Config, runs: int, plain: tuple[Any, First], ours: tuple[Any, First]) -> None:
    """Time both in turns, each over its own rows, and report."""

    def epoch(trainer: Any, loader: First) -> Callable[[], Any]:
        return lambda: trainer._train_epoch(loader, 0)

    first, second = epoch(*plain), epoch(*ours)
    first(), second()  # not timed: caches, the choice of the scoring path
    spent: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    with timing(spent):
        taken = in_turns(first, second, runs, config["device"])
    per_row = [
        [value / loader.rows for value in values] for values, (_, loader) in zip(taken, (plain, ours), strict=True)
    ]
    parts = {name: round(value / sum(taken[1]), 2) for name, value in spent.items()}
    device = device_name(config["device"])
    report(benchmark, config["model"], *per_row, 1, "rows", cost=True, parts=parts, device=device)


@contextmanager
def timing(spent: dict[str, float]) -> Iterator[None]:
    """Adds the seconds of each of PARTS, which only distilled epochs call."""

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = function(*args, **kwargs)
            spent[name] += time.perf_counter() - started
            return result

        return call

    with ExitStack() as stack:
        for name, (owner, method) in PARTS.items():
            stack.enter_context(mock.patch.object(owner, method, timed(name, getattr(owner, method))))
        yield


if __name__ == "__main__":
    main()
