"""The step's cost as the catalogue grows: a distilled step against the student's own, for 10^4 to 10^6 items.

python benchmarks/catalogue.py --items=10000,100000,1000000

Random users of 12 items each; three random teachers. `ratio`: a distilled step over the student's
own on the same batches, which must not grow; `peak_mb`: the process's highest resident memory on a CPU, the
device's peak on a GPU. Each size runs in a process of its own. One JSON object a line, then a table.
"""

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import collect, device_name, in_turns, report, table
from recbole.utils import get_model, init_seed
from synthetic import random_knowledge

from recbole_prmkd.data.split import load_split
from recbole_prmkd.distil.objective import Objective
from recbole_prmkd.distil.trainer import with_kd
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.memory import keep_freed_memory
from recbole_prmkd.students.adapter import StudentAdapter

PER_USER, WIDTHS = 12, (64, 64, 64)
STUDENTS: dict[str, dict[str, Any]] = {"BPR": {}, "LightGCN": {}, "SASRec": {"loss_type": "BPR"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", default="10000,100000,1000000")
    parser.add_argument("--models", default=",".join(STUDENTS))
    parser.add_argument("--steps", type=int, default=4, help="steps that are timed together")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does, for both sides of a ratio
    # A process for each, so that the peak is its own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for model in arguments.models.split(","):
            for number in map(int, arguments.items.split(",")):
                collect(pool.submit(compare, model, number, arguments.steps, arguments.runs).result())
    print(table())


def compare(model: str, n_items: int, number: int, runs: int) -> dict[str, Any]:
    """Report one student and size."""
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder), n_items)
        return measured(model, n_items, Path(folder), number, runs)


def measured(model: str, n_items: int, folder: Path, number: int, runs: int) -> dict[str, Any]:
    """Steps of the student alone and distilled, on the data in `folder`."""
    more = {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}, "MAX_ITEM_LIST_LENGTH": PER_USER}
    # Every step has a kd_loss here; of a real epoch's few have one (kd_every).
    settings = {
        "kd": "mean",
        "kd_every": 1,
        "data_path": str(folder),
        "show_progress": False,
        **more,
        **STUDENTS[model],
    }
    config = load_config(model, "random", config_dict=settings)
    split = load_split(config)
    init_seed(config["seed"], True)
    net = get_model(model)(config, split.train_data._dataset).to(config["device"])
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)  # any: it is part of both
    knowledge = random_knowledge(len(split.item_tokens) + 1, len(split.train), WIDTHS, config["device"])
    scorer = StudentAdapter(net, config, split.train_data._dataset, split.train)
    objective = Objective(config, knowledge, split.train, split.future, scorer)
    batches = [batch.to(config["device"]) for batch, _ in zip(split.train_data, range(number), strict=False)]

    def steps(calculate_loss: Callable[[Any], Any]) -> Callable[[], None]:
        def work() -> None:
            for batch in batches:
                optimizer.zero_grad()
                calculate_loss(batch).backward()
                optimizer.step()

        return work

    plain, ours = steps(net.calculate_loss), steps(with_kd(net.calculate_loss, objective))
    plain(), ours()
    timed = in_turns(plain, ours, runs, config["device"])
    name, device = f"{model}, {n_items} items, {scorer.path}", config["device"]
    more = {"peak_mb": peak_mb(device), "device": device_name(device)}
    return report("catalogue", name, *timed, len(batches), "steps", cost=True, **more)


def write_data(folder: Path, n_items: int) -> None:
    """Atomic files of random sequences, all of one length, that name every item once."""
    data = folder / "random"
    data.mkdir()
    items = np.random.default_rng(0).permutation(n_items)
    lines = [f"u{place // PER_USER}\ti{item}\t{place}" for place, item in enumerate(items)]
    (data / "random.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")


def peak_mb(device: torch.device) -> int:
    """Highest memory in use, in MB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
