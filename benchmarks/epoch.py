"""Cost of a distilled training epoch against a stock RecBole epoch.

python benchmarks/epoch.py --dataset=ml-100k --models=SASRec,GRU4Rec,BERT4Rec,DeepFM,LightGCN,BPR

Three teachers of random vectors, as wide as real ones, stand in a cache: what they say does not change the cost. Plain:
RecBole's own training on its own loader. "same batches": the same with a KD loss. "shared prefixes": with a KD loss on
windows, for students that can. `ratio` is ours over RecBole's seconds per training example, in turns in one run.

--batches: those of a sequential epoch that are timed; 0: all. Every other --key=value is a setting of both, such as
--kd_max_rows=512 or --kd_every=4 (which times whole epochs).
"""

import tempfile
from pathlib import Path
from typing import Any

from measure import Work, compare, options, table
from recbole.utils import ModelType
from synthetic import First, distilled, stock, student

from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students.causal_check import why_not_shared


def main() -> None:
    models = "SASRec,GRU4Rec,BERT4Rec,DeepFM,LightGCN,BPR"
    arguments = options(__doc__, dataset="ml-100k", models=models, batches=6, runs=3)
    lines = []
    for name in arguments.models.split(","):
        lines += measured(name, arguments.dataset, arguments.batches, arguments.runs)
    print(table(lines))


def measured(name: str, dataset: str, batches: int, runs: int) -> list[dict[str, Any]]:
    """One student, with and without windows."""
    config = load_config(name, dataset, config_dict={"kd": "prmkd_v1", "show_progress": False})
    split = load_split(config)
    in_order = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    # A part of an epoch says nothing of students that have a KD loss on few batches alone (kd_every).
    number = batches if batches and in_order and config["kd_every"] == "auto" else None
    lines = []
    with tempfile.TemporaryDirectory() as made:
        folder, model = Path(made), student(config, split)

        def against_stock(benchmark: str, ours: Work) -> None:
            lines.append(
                compare(benchmark, name, plain, ours, runs, config["device"], "examples", "RecBole's epoch", True)
            )

        plain = epoch(stock(config, model, folder), First(split.train_data, number))
        shares = in_order and why_not_shared(model, config, split.train) is None
        for benchmark, on_windows in (("epoch, same batches", False), ("epoch, shared prefixes", True)):
            if on_windows and not shares:
                continue
            config["kd_shared_prefixes"] = on_windows
            with distilled(config, split, student(config, split), folder) as (trainer, train_data):
                against_stock(benchmark, epoch(trainer, First(train_data, number)))
    return lines


def epoch(trainer: Any, loader: First) -> Work:
    """One epoch over these batches, in training examples."""

    def work() -> tuple[int, Any]:
        loss = trainer._train_epoch(loader, 0)
        return loader.examples, loss

    return work


if __name__ == "__main__":
    main()
