"""The process of one job: `python -m recbole_prmkd.compare.work FOLDER [GPU]`, with the folder's job.json.

GPU is its number; an empty one means the CPU. A cell can so be run again by hand. A job whose parent has gone ends
itself, so that after a `kill -9` of the comparison the same command may start at once.
"""

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from recbole_prmkd.compare.cost import measure_costs
from recbole_prmkd.compare.job import FILE, PARENT
from recbole_prmkd.compare.tuning import SWEEP, SWEEP_FILE
from recbole_prmkd.errors import UserError
from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.quick_start import run_recbole_prmkd
from recbole_prmkd.recbole_host.checks import check_run
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.memory import keep_freed_memory
from recbole_prmkd.recbole_host.run_files import run_logging
from recbole_prmkd.serving.kept_data import nothing_kept
from recbole_prmkd.tune import run_sweep
from recbole_prmkd.tune.plan import FILE as PLAN


def main() -> None:
    """Do what the folder on the command line says."""
    folder, *gpu = sys.argv[1:]
    sys.argv[1:] = []  # RecBole reads settings there
    keep_freed_memory()
    if PARENT in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[PARENT]),), daemon=True).start()
    content = json.loads((Path(folder) / FILE).read_text(encoding="utf-8"))
    try:
        if gpu:
            content["settings"]["gpu_id"] = gpu[0]
            if content["settings"].get("use_gpu", True):
                _check_gpu(gpu[0])
        WORK[content["work"]](content, Path(folder))
    except UserError as error:
        sys.exit(f"recbole_prmkd: {error}")


def _check_gpu(gpu: str) -> None:
    """Reject a GPU that CUDA does not show: RecBole would train on the CPU instead and say nothing.

    Raises:
        UserError: that is so.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # as RecBole will
    if gpu and not torch.cuda.is_available():
        raise UserError(f"CUDA shows no GPU {gpu}, which this job was given: see nvidia-smi, or set --use_gpu=False.")


def _train(content: Mapping[str, Any], folder: Path) -> None:
    """A cell: a plain run that keeps no data set."""
    settings = {**content["settings"], "kd_output_dir": str(folder)}
    with nothing_kept():
        run_recbole_prmkd(content["model"], content["dataset"], config_dict=settings)


def _prepare(content: Mapping[str, Any], folder: Path) -> None:
    """Teachers and their caches for all cells of a data set and student."""
    config = load_config(content["model"], content["dataset"], None, content["settings"])
    check_run(config, folder)
    with tempfile.TemporaryDirectory() as logs, run_logging(config, Path(logs)):
        prepare(config, Steps())


def _cost(content: Mapping[str, Any], folder: Path) -> None:
    """What serving takes."""

    def config(settings: Mapping[str, Any]) -> Any:
        gpu = {key: value for key, value in content["settings"].items() if key == "gpu_id"}
        return load_config(content["model"], content["dataset"], None, {**settings, **gpu})

    own = config(content["settings"])
    students = {kd: (config(each["settings"]), Path(each["checkpoint"])) for kd, each in content["students"].items()}
    with tempfile.TemporaryDirectory() as logs, run_logging(own, Path(logs)):
        measure_costs(own, students, Path(content["file"]), content["ensemble"])


def _tune(content: Mapping[str, Any], folder: Path) -> None:
    """The sweep of one student and KD method, or what is left of it."""
    sweep, file, address = folder / SWEEP, folder / SWEEP_FILE, content["ray_address"]
    if (sweep / PLAN).is_file():
        run_sweep(resume=str(sweep), ray_address=address, trust_folder=content.get("trust_folder", False))
        return
    file.write_text(yaml.safe_dump(content["sweep"], sort_keys=False), encoding="utf-8")
    settings = {**content["settings"], "kd_output_dir": str(sweep)}
    run_sweep(content["model"], content["dataset"], None, settings, sweep_file=str(file), ray_address=address)


WORK: dict[str, Callable[[Mapping[str, Any], Path], None]] = {
    "train": _train,
    "prepare": _prepare,
    "tune": _tune,
    "cost": _cost,
}


def _end_with(parent: int) -> None:
    """End this process once its parent is another than the one that started it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
