"""CPU seconds and peak memory of an epoch of UniSRec's fine-tuning on made data, by full and sampled softmax.

OMP_NUM_THREADS=1 python benchmarks/teacher_epoch.py --items=12000 --examples=129000
python benchmarks/teacher_epoch.py --items=4385 --examples=32396 --steps=8

As many users as items, long tails of both, random text vectors of 384 numbers. Each way runs in a process of its own.
`peak_mb` includes Python and torch, about 500 MB. --steps: of an epoch at most, the rest is estimated; 0: all.
--ways: some of "full;sampled, float32;sampled".
"""

import json
import multiprocessing
import time
from typing import Any
from unittest import mock

import torch
from linear import FIELDS, random_examples
from measure import options

from recbole_prmkd.recbole_host.keys import properties_dir, read_yaml
from recbole_prmkd.recbole_host.memory import keep_freed_memory, peak_memory_mb
from recbole_prmkd.students.windows import WindowLoader, shared_prefixes
from recbole_prmkd.teachers import unisrec
from recbole_prmkd.teachers.data import ExamplesDataset

WAYS: dict[str, dict[str, Any]] = {
    "full": {"softmax": "full"},
    "sampled, float32": {"softmax": "sampled", "train_precision": "float32"},
    "sampled": {"softmax": "sampled"},
}


def main() -> None:
    arguments = options(__doc__, items=12_000, examples=129_000, batch=2048, steps=0, ways=";".join(WAYS))
    ways, found = arguments.ways.split(";"), {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        jobs = [(way, arguments.items, arguments.examples, arguments.batch, arguments.steps) for way in ways]
        for line in pool.starmap(measured, jobs, chunksize=1):
            print(json.dumps(line), flush=True)
            found[line["way"]] = line["epoch_cpu_seconds"]
    for way in ways:
        if way != "full" and "full" in found:
            ratio = round(found[way] / found["full"], 3)
            about = {"benchmark": "teacher epoch", "model": f"UniSRec, {way} softmax", "peer": "full softmax"}
            print(json.dumps({**about, "ratio": ratio, "ratio_of": "ours / plain", "runs": [ratio]}), flush=True)


def measured(way: str, items: int, number: int, batch: int, steps: int) -> dict[str, Any]:
    """CPU seconds of an epoch, and the highest memory in it."""
    keep_freed_memory()
    torch.manual_seed(0)
    config = {
        **read_yaml(properties_dir() / "model" / "UniSRec.yaml"),
        **{f"{name}_FIELD": field for name, field in FIELDS.items()},
        **{"LIST_SUFFIX": "_list", "ITEM_LIST_LENGTH_FIELD": "item_length", "NEG_PREFIX": "neg_", "device": "cpu"},
        **{"seed": 2020, "shuffle": True, "single_spec": True, "kd_window_context": 0.5, "train_batch_size": batch},
        **WAYS[way],
    }
    examples = random_examples(items, number + items)
    dataset = mock.create_autospec(ExamplesDataset, instance=True)
    dataset.num, dataset.inter_feat = lambda field: items + 1, {"item_id": examples.targets}
    text = torch.nn.functional.normalize(torch.randn(items + 1, 384), dim=1)
    with mock.patch.object(unisrec, "item_text_vectors", lambda *_, **__: text):
        model = unisrec.UniSRec(config, dataset).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=config["learning_rate"])
    loader = WindowLoader(config, None, examples)
    started, done = time.process_time(), 0
    with shared_prefixes(model):
        for interaction in loader:
            optimizer.zero_grad()
            model.calculate_loss(interaction).backward()
            optimizer.step()
            done += 1
            if done == steps:
                break
    seconds = (time.process_time() - started) / done * len(loader)
    peak = peak_memory_mb(torch.device("cpu"))
    line = {
        "way": way,
        "items": items,
        "examples": len(examples),
        "steps": done,
        "epoch_cpu_seconds": round(seconds, 1),
    }
    return {**line, "threads": torch.get_num_threads(), "peak_mb": round(peak or 0)}


if __name__ == "__main__":
    main()
