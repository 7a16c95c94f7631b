"""Speed of a training epoch of PyGLightGCN against RecBole's own LightGCN: same data, settings and first weights.

python benchmarks/lightgcn.py --dataset=ml-100k

Plain: RecBole's. Both are trained by RecBole's trainer and loader, in turns, and their losses of the first epoch must
agree to 1e-6. "epoch": with loading and sampling of negatives. "steps": loss, gradient and update on the same batches.
`ratio` is our time over RecBole's, at most 1. One JSON object a line, then a table.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import device_name, in_turns, report, table
from recbole.config import Config
from recbole.utils import get_model, get_trainer, init_seed

from recbole_prmkd.data.split import Split, load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.memory import keep_freed_memory
from recbole_prmkd.recbole_host.run_files import quiet_trainer

TOLERANCE = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default=None)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does, for both sides of a ratio
    settings = {"kd": "none", "show_progress": False}
    if arguments.data_path:
        settings["data_path"] = arguments.data_path
    config = load_config("PyGLightGCN", arguments.dataset, config_dict=settings)
    split = load_split(config)
    with tempfile.TemporaryDirectory() as folder:
        epochs(trainers(config, split, Path(folder)), config, split, arguments.runs)
        steps(trainers(config, split, Path(folder)), config, split, arguments.runs)
    print(table())


def trainers(config: Config, split: Split, folder: Path) -> list[Any]:
    """RecBole's trainer of each model, RecBole's first; both start from the same weights."""
    made = []
    for name in ("LightGCN", "PyGLightGCN"):
        init_seed(config["seed"], True)
        model = get_model(name)(config, split.train_data._dataset).to(config["device"])
        made.append(quiet_trainer(get_trainer(config["MODEL_TYPE"], name), config, model, folder))
    return made


def epochs(both: list[Any], config: Config, split: Split, runs: int) -> None:
    """Whole training epochs; the first of each is not timed."""

    def epoch(trainer: Any) -> float:
        init_seed(config["seed"], True)  # the same negatives and order for both
        split.train_data.generator.manual_seed(config["seed"])
        return float(trainer._train_epoch(split.train_data, 0))

    agree(*(epoch(trainer) for trainer in both))
    timed = in_turns(lambda: epoch(both[0]), lambda: epoch(both[1]), runs, config["device"])
    report(
        "epoch", "PyGLightGCN", *timed, len(split.train_data), "steps", cost=True, device=device_name(config["device"])
    )


def steps(both: list[Any], config: Config, split: Split, runs: int) -> None:
    """Loss, gradient and update on batches that are drawn beforehand."""
    init_seed(config["seed"], True)
    batches = [batch.to(config["device"]) for batch in split.train_data]

    def work(trainer: Any) -> float:
        total = torch.zeros((), device=config["device"])
        trainer.model.train()
        for batch in batches:
            trainer.optimizer.zero_grad()
            loss = trainer.model.calculate_loss(batch)
            loss.backward()
            trainer.optimizer.step()
            total += loss.detach().sum()
        return float(total)

    agree(*(work(trainer) for trainer in both))
    timed = in_turns(lambda: work(both[0]), lambda: work(both[1]), runs, config["device"])
    report("steps", "PyGLightGCN", *timed, len(batches), "steps", cost=True, device=device_name(config["device"]))


def agree(plain: float, ours: float) -> None:
    """Stop where the two losses differ."""
    if abs(plain - ours) > TOLERANCE * abs(plain):
        raise SystemExit(f"the losses differ: {plain} and {ours}")


if __name__ == "__main__":
    main()
