"""The step's cost as the catalogue grows: a distilled step against the student's own, for 10^4 to 10^6 items.

python benchmarks/catalogue.py --items=10000,100000,1000000

Random users of 12 items each; three random teachers. `ratio`: a distilled step over the student's
own on the same batches, which must not grow; `peak_mb`: the process's highest resident memory on a CPU, the
device's peak on a GPU. Each size runs in a process of its own. --steps: those that are timed together.
"""

import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import Work, compare, options, table
from recbole.utils import init_seed
from synthetic import First, distilled, stock, student

from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.memory import keep_freed_memory

PER_USER, WIDTHS = 12, (64, 64, 64)
STUDENTS: dict[str, dict[str, Any]] = {"BPR": {}, "LightGCN": {}, "SASRec": {"loss_type": "BPR"}}
SETTINGS = {
    "kd": "mean",
    "kd_every": 1,  # every step has a KD loss here; in a run, every k-th (kd_every)
    "learner": "sgd",  # any: it is part of both
    "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
    "MAX_ITEM_LIST_LENGTH": PER_USER,
    "show_progress": False,
}


def main() -> None:
    arguments = options(__doc__, items="10000,100000,1000000", models=",".join(STUDENTS), steps=4, runs=3)
    sizes = [(model, int(n)) for model in arguments.models.split(",") for n in arguments.items.split(",")]
    # A process for each, so that the peak is its own.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        jobs = [(model, n_items, arguments.steps, arguments.runs) for model, n_items in sizes]
        print(table(pool.starmap(measured, jobs, chunksize=1)))


def measured(model: str, n_items: int, number: int, runs: int) -> dict[str, Any]:
    """Steps of the student alone and distilled, on data with this number of items."""
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, n_items)
        config = load_config(model, "random", config_dict={**SETTINGS, **STUDENTS[model], "data_path": name})
        device = config["device"]
        split = load_split(config)
        net = student(config, split)
        init_seed(config["seed"], True)
        batches = [batch.to(device) for batch, _ in zip(split.train_data, range(number), strict=False)]

        def steps(trainer: Any) -> Work:
            return lambda: (len(batches), trainer._train_epoch(First(batches), 0))

        plain, title = stock(config, net, folder), f"{model}, {n_items} items"
        config["kd_shared_prefixes"] = False
        with distilled(config, split, net, folder, WIDTHS) as (ours, _):
            return compare("catalogue", title, steps(plain), steps(ours), runs, device, "steps", "its own step", True)


def write_data(folder: Path, n_items: int) -> None:
    """Atomic files of random sequences, all of one length, that name every item once."""
    data = folder / "random"
    data.mkdir()
    items = np.random.default_rng(0).permutation(n_items)
    lines = [f"u{place // PER_USER}\ti{item}\t{place}" for place, item in enumerate(items)]
    (data / "random.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
