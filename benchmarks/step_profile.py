"""Where a distilled step's time goes: operations, kernels and waits for the device, of its KD loss and of all of it.

python benchmarks/step_profile.py --models=SASRec,GRU4Rec,LightGCN,DeepFM

Run it where there is a GPU, before and after a change; on a CPU it counts operations alone. One JSON line a student:
`operations` that the CPU started, `kernels` and copies on the device, `waits` (cudaStreamSynchronize and its kind) and
`milliseconds` a step, of RecBole's own step (`plain`) and of the distilled one (`ours`). --top: also print so many of
the operations that took longest. Every other --key=value is a setting.

On a GPU `bench.py --only=epoch` gives the ratios that follow from it.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measure import options
from synthetic import First, distilled, stock, student
from torch.profiler import ProfilerActivity, profile

from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config


def main() -> None:
    arguments = options(__doc__, dataset="ml-100k", models="SASRec,GRU4Rec,LightGCN,DeepFM", steps=4, top=0)
    for name in arguments.models.split(","):
        settings = {"kd": "prmkd_v1", "kd_every": 1, "kd_shared_prefixes": False, "show_progress": False}
        config = load_config(name, arguments.dataset, config_dict=settings)
        split = load_split(config)
        with tempfile.TemporaryDirectory() as made:
            folder, line = Path(made), {"model": name, "device": config["device"].type}
            trainer = stock(config, student(config, split), folder)
            line["plain"] = measured(trainer, split.train_data, arguments.steps, 0)
            with distilled(config, split, student(config, split), folder) as (trainer, train_data):
                line["ours"] = measured(trainer, train_data, arguments.steps, arguments.top)
        print(json.dumps(line), flush=True)


def measured(trainer: Any, loader: Any, steps: int, top: int) -> dict[str, float]:
    """Operations, kernels, waits and milliseconds of a step, a mean over some."""
    batches, gpu = First([batch for batch in First(loader, steps)]), torch.cuda.is_available()
    trainer._train_epoch(batches, 0)
    started = time.perf_counter()
    trainer._train_epoch(batches, 0)  # reads each step's loss, so that nothing is left to wait for
    milliseconds = 1000 * (time.perf_counter() - started) / steps
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
        trainer._train_epoch(batches, 0)
    events = found.events() or []
    on_device = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    waits = [event for event in events if "Synchronize" in event.name]
    started_ops = [event for event in events if event.name.startswith("aten::")]
    if top:
        print(
            found.key_averages().table(sort_by="self_cuda_time_total" if gpu else "self_cpu_time_total", row_limit=top)
        )
    return {
        "operations": round(len(started_ops) / steps),
        "kernels": round(len(on_device) / steps),
        "waits": round(len(waits) / steps, 1),
        "milliseconds": round(milliseconds, 1),
    }


if __name__ == "__main__":
    main()
