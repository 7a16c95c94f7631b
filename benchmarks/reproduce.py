"""The comparisons of docs/results.md in one command: `make reproduce DATA="--data_path=data"`.

Says first what it will run and about how long that takes here; --estimate stops there. Data sets that are absent are
skipped. `reproduce.yaml` beside this file says what is run. The same command goes on after an interruption.

The estimate: one epoch of each student on each data set is trained alone and validated, and its time multiplied by the
epochs that `reproduce.yaml` expects and by the cells, since a distilled epoch takes about as long (docs/costs.md).
Making the teachers is not in it. Take it as right within a factor of two.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.compare.grid import parse_seeds
from recbole_prmkd.recbole_host.keys import kind_of

HOME = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data_path", default="dataset", help="folder of the data sets; ml-100k ships with recbole")
    parser.add_argument("--out", default="runs/reproduce", help="folder for everything that is made")
    parser.add_argument("--seeds", default=None, help="as for --compare; 5 where it is left out")
    parser.add_argument("--jobs", type=int, default=None, help="--compare_jobs")
    parser.add_argument("--estimate", action="store_true", help="say how long it takes, and stop")
    arguments = parser.parse_args()
    sys.argv[1:] = []  # RecBole reads settings there
    plan = yaml.safe_load((HOME / "reproduce.yaml").read_text(encoding="utf-8"))
    data, out = Path(arguments.data_path), Path(arguments.out)
    present = {name: entry for name, entry in plan["comparisons"].items() if is_present(data, name)}
    for name in plan["comparisons"].keys() - present.keys():
        print(f"Skipped: {name}, since there is no {data / name / name}.inter.")
    estimate(plan, list(present), arguments)
    if arguments.estimate:
        return
    started = pretrained(plan["pretraining"], plan["settings"]["kd_teachers"], data, out)
    failed = [name for name, entry in present.items() if not compare(name, entry, plan, arguments, started)]
    for name in present:
        print(f"{name}: {out / name / 'report.html'}{' (with failures)' if name in failed else ''}")
    sys.exit(1 if failed else 0)


def is_present(data: Path, name: str) -> bool:
    """Whether RecBole finds the data set."""
    return name == "ml-100k" or (data / name / f"{name}.inter").is_file()


def estimate(plan: dict[str, Any], names: list[str], arguments: argparse.Namespace) -> None:
    """Time an epoch of each student on each data set, and print the hours that all cells take."""
    at_a_time = arguments.jobs or torch.cuda.device_count() or max(1, (os.cpu_count() or 1) // 4)
    cells = len(parse_seeds(arguments.seeds)) * len({*plan["kds"]} - {"ensemble"})  # which trains nothing
    total = 0.0
    for name in names:
        for model in plan["models"]:
            seconds = epoch_seconds(model, name, arguments.data_path)
            hours = cells * plan["epochs"] * seconds / 3600
            total += hours / at_a_time
            print(f"{name}, {model}: {seconds:.1f} s an epoch, {hours:.1f} h for {cells} cells", flush=True)
    print(
        f"{cells * len(plan['models']) * len(names)} cells, {at_a_time} at a time: about {total:.1f} hours at "
        f"{plan['epochs']} epochs a cell, the making of the teachers not counted.",
        flush=True,
    )


def epoch_seconds(model: str, name: str, data_path: str) -> float:
    """Seconds of an epoch of the student alone with its validation, as in a comparison."""
    as_in_comparison = {"kd": "none", "kd_protocol": "ranking", "kd_shared_prefixes": True, "eval_batch_size": 1024}
    quiet = {"epochs": 1, "show_progress": False, "state": "ERROR"}
    with tempfile.TemporaryDirectory() as folder:
        where = {"data_path": data_path, "kd_output_dir": str(Path(folder) / "run")}
        run = run_recbole_prmkd(model, name, config_dict={**as_in_comparison, **quiet, **where}, saved=False)
    return run["result"]["student"]["train_seconds"]


def pretrained(entry: dict[str, Any], teachers: list[str], data: Path, out: Path) -> dict[str, str]:
    """The settings that name the pre-trained file to each teacher of its kind; it is made now unless it is there."""
    model, names = entry["model"], entry["datasets"]
    file = out / "pretrained" / f"{model}.safetensors"
    absent = [name for name in names if not is_present(data, name)]
    if absent and not file.is_file():
        print(f"Not pre-trained: {model}, since {', '.join(absent)} is absent; it starts from scratch.", flush=True)
        return {}
    if not file.is_file():
        given = {"model": model, "train_stage": "pretrain", "datasets": ",".join(names), "data_path": data}
        run({**given, "kd_output_dir": file.parent, **entry["settings"]})
    named = [name for name in teachers if kind_of(name) == model]
    return {f"kd_{name.lower()}_checkpoint": str(file) for name in named} if file.is_file() else {}


def compare(
    name: str, entry: dict[str, Any], plan: dict[str, Any], arguments: argparse.Namespace, started: dict[str, str]
) -> bool:
    """One comparison; whether it ended well."""
    settings = {**plan["settings"], **entry.get("settings", {}), **started}
    for key, path in entry.get("files", {}).items():
        file = Path(path.format(data=arguments.data_path, out=arguments.out))
        if file.is_file():
            settings[key] = str(file)
        else:
            print(f"{name} without {key}: there is no {file}.", flush=True)
            settings |= entry.get("without", {})
    lists = {"compare": plan["kds"], "models": plan["models"], "datasets": [name]}
    given: dict[str, Any] = {option: ",".join(names) for option, names in lists.items()}
    given |= {"seeds": arguments.seeds, "compare_jobs": arguments.jobs}
    given = {option: value for option, value in given.items() if value is not None}
    return run({**given, "data_path": arguments.data_path, "kd_output_dir": Path(arguments.out) / name, **settings})


def run(options: dict[str, Any]) -> bool:
    """The command line with these options; printed, so that it can be run alone."""
    text = {key: f"[{','.join(value)}]" if isinstance(value, list) else str(value) for key, value in options.items()}
    command = [sys.executable, str(HOME.parent / "run_recbole_prmkd.py"), *(f"--{key}={v}" for key, v in text.items())]
    print(" ".join(command), flush=True)
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    main()
