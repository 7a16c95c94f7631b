"""The comparisons of docs/results.md in one command: `make reproduce DATA="--data_path=data"`.

Says first what it will run and about how long that takes here; --estimate stops there. Data sets that are absent are
skipped. `reproduce.yaml` beside this file says what is run. The same command goes on after an interruption.

The estimate: for each data set and student a few batches of training (a whole epoch for students without order),
without and with random teachers, and a batch of validation are timed, then multiplied by the rows, the epochs that
`reproduce.yaml` expects, and the cells. Making the teachers is not in it. Take it as right within a factor of two.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from epoch import First, distil, trainer_of
from measure import device_name, seconds
from recbole.config import Config
from recbole.utils import ModelType

from recbole_prmkd.compare.grid import parse_seeds
from recbole_prmkd.compare.schedule import visible_gpus, workers_here
from recbole_prmkd.data.split import Split, load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.keys import kind_of
from recbole_prmkd.students.windows import WindowLoader, shared_prefixes, why_not_shared

HOME = Path(__file__).resolve().parent
BATCHES = 4  # of a sequential epoch that are timed


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
    gpus = visible_gpus()
    data, out = Path(arguments.data_path), Path(arguments.out)
    there = {name: entry for name, entry in plan["comparisons"].items() if is_there(data, name)}
    for name in plan["comparisons"].keys() - there.keys():
        print(f"Skipped: {name}, since there is no {data / name / name}.inter.")
    room = len(workers_here(arguments.jobs, gpus).gpus)
    estimate(plan, there, arguments, room)
    if arguments.estimate:
        return
    started = pretrained(plan["pretraining"], plan["settings"]["kd_teachers"], data, out)
    failed = [name for name, entry in there.items() if not compare(name, entry, plan, arguments, started)]
    for name in there:
        print(f"{name}: {out / name / 'report.html'}{' (with failures)' if name in failed else ''}")
    sys.exit(1 if failed else 0)


def is_there(data: Path, name: str) -> bool:
    """Whether RecBole finds the data set."""
    return name == "ml-100k" or (data / name / f"{name}.inter").is_file()


def estimate(plan: dict[str, Any], there: dict[str, Any], arguments: argparse.Namespace, room: int) -> None:
    """Time a few batches of each data set and student, and print the hours that all cells take."""
    seeds, distilled = len(parse_seeds(arguments.seeds)), len({*plan["kds"]} - {"none", "ensemble"})  # these train
    total, device = 0.0, torch.device("cpu")
    for name in there:
        for model in plan["models"]:
            settings = {"kd": "prmkd_v1", "kd_teachers": ["UniSRec"], "show_progress": False, "eval_batch_size": 1024}
            config = load_config(model, name, None, {**settings, "data_path": arguments.data_path})
            device = config["device"]
            plain, ours = epoch_seconds(config)
            hours = seeds * plan["epochs"] * (plain + distilled * ours) / 3600
            total += hours / room
            print(
                f"{name}, {model}: {plain:.1f} s an epoch alone, {ours:.1f} s distilled; {hours:.1f} h in all",
                flush=True,
            )
    cells = seeds * (1 + distilled) * len(plan["models"]) * len(there)
    print(
        f"{cells} cells, {room} at a time on {device_name(device)}: about {total:.1f} hours at {plan['epochs']} epochs "
        "a cell, the making of the teachers not counted.",
        flush=True,
    )


def epoch_seconds(config: Config) -> tuple[float, float]:
    """Seconds of an epoch with its validation, without and with distillation from random teachers."""
    split = load_split(config)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        plain, ours = (trainer_of(config, split, Path(folder), distilled=False) for _ in range(2))
        loader: Any = split.train_data
        in_order = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        if in_order and not why_not_shared(plain.model, config, split.train):
            for trainer in (plain, ours):
                stack.enter_context(shared_prefixes(trainer.model))
            loader = WindowLoader(config, split.train_data._dataset, split.train)
        validation = validation_seconds(plain, split)
        spent = []
        for trainer in (plain, distil(ours, config, split)):
            trainer._train_epoch(First(loader, 1), 0)  # not timed: the choice of the scoring path
            few = First(loader, BATCHES if in_order else len(loader))  # few of the others' batches have a kd_loss
            taken = seconds(lambda t=trainer, few=few: t._train_epoch(few, 0), config["device"])
            spent.append(taken * len(loader) / len(few) + validation)
        return spent[0], spent[1]


def validation_seconds(trainer: Any, split: Split) -> float:
    """A validation, from its first batch."""
    trainer.tot_item_num = split.valid_data._dataset.item_num
    trainer.item_tensor = split.valid_data._dataset.get_item_feature().to(trainer.device)
    trainer.model.eval()
    batch = next(iter(split.valid_data))
    begin = time.perf_counter()
    with torch.no_grad():
        trainer._full_sort_batch_eval(batch)[1].cpu()
    return (time.perf_counter() - begin) * len(split.valid_data)


def pretrained(entry: dict[str, Any], teachers: list[str], data: Path, out: Path) -> dict[str, str]:
    """The settings that name the pre-trained file to each teacher of its kind; it is made now unless it is there."""
    model, names = entry["model"], entry["datasets"]
    file = out / "pretrained" / f"{model}.safetensors"
    absent = [name for name in names if not is_there(data, name)]
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
    given = {option: ",".join(names) for option, names in lists.items()}
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
