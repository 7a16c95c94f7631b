"""Command line of recbole_prmkd, with RecBole's habits:

python run_recbole_prmkd.py --model=SASRec --dataset=ml-100k --kd=prmkd
python run_recbole_prmkd.py --model=SASRec --dataset=ml-100k --kd=prmkd --config_files="my.yaml" --kd_weight=5
python run_recbole_prmkd.py --model=SASRec --dataset=ml-100k --kd=prmkd --nproc=4
python run_recbole_prmkd.py --model=SASRec --dataset=ml-100k --kd=prmkd --tune=hyper/sasrec.yaml --tune_trials=50
python run_recbole_prmkd.py --model=UniSRec --train_stage=pretrain --datasets=first,second
python run_recbole_prmkd.py --compare=none,mean,prmkd_plus --models=SASRec,LightGCN --datasets=ml-100k --seeds=5
python run_recbole_prmkd.py --recommend=RUN_FOLDER --output=lists.parquet
python run_recbole_prmkd.py --export=RUN_FOLDER --format=vectors
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _end(number: int, frame: Any) -> None:
    os.write(2, b"recbole_prmkd: Interrupted before anything began; the same command starts again.\n")
    os._exit(128 + number)


@contextmanager
def _interruptible_imports() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the seconds of imports in one line; `interruptible` takes over in `main`."""
    try:
        before = {number: signal.signal(number, _end) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # imported in a thread
        before = {}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


with _interruptible_imports():
    from recbole_prmkd import UserError, pretrain, run_recbole_prmkd
    from recbole_prmkd.interruption import interruptible, say_reuse
    from recbole_prmkd.launch import run_processes
    from recbole_prmkd.recbole_host.config import datasets_to_pretrain_on, user_setting
    from recbole_prmkd.recbole_host.memory import keep_freed_memory


@interruptible()
def main() -> None:
    """Read the command line and run; wrong input ends with exit code 1 and one sentence."""
    if any(argument.partition("=")[0] in ("--recommend", "--export") for argument in sys.argv[1:]):
        return _serve()
    parser = argparse.ArgumentParser(
        description="Distil pre-trained recommendation models into any RecBole model.",
        epilog="Every key of RecBole and of properties/kd.yaml is an option: --key=value.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", "-m", default=None, help="name of the student, such as SASRec")
    parser.add_argument("--dataset", "-d", default=None, help="name of the data set, such as ml-100k")
    parser.add_argument("--datasets", default=None, help="data sets to pre-train on or compare on, separated by commas")
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine, one for each GPU")
    parser.add_argument(
        "--world_size", type=int, default=-1, help="processes on all machines; -1: those of this machine"
    )
    parser.add_argument("--ip", default="localhost", help="the first machine's address")
    parser.add_argument("--port", default="5678", help="a free port on the first machine")
    parser.add_argument("--group_offset", type=int, default=0, help="processes on the machines before this one")
    parser.add_argument("--config_files", default=None, help="YAML files, separated by spaces")
    parser.add_argument(
        "--tune", metavar="FILE", default=None, help="search settings as this sweep file says, such as those in hyper/"
    )
    parser.add_argument("--tune_trials", type=int, default=None, help="number of trials, in place of the sweep file's")
    parser.add_argument(
        "--tune_resume",
        metavar="FOLDER",
        nargs="?",
        const=True,
        default=None,
        help="go on with the sweep in this folder, with --tune_trials=N up to N trials",
    )
    parser.add_argument(
        "--tune_trust_folder",
        action="store_true",
        help="let --tune_resume, or a comparison's sweeps, run what another user's folder holds",
    )
    parser.add_argument(
        "--ray_address", default=None, help="a running Ray cluster, such as auto; left out: this machine"
    )
    parser.add_argument("--compare", metavar="KDS", default=None, help="values of --kd to compare, such as none,prmkd")
    parser.add_argument("--models", default=None, help="students of the comparison, separated by commas")
    parser.add_argument("--seeds", default=None, help="number of seeds, from 2020 on, or seeds separated by commas")
    parser.add_argument("--compare_jobs", type=int, default=None, help="processes that the comparison runs at a time")
    arguments, others = parser.parse_known_args()
    keep_freed_memory()
    try:
        _check_options(arguments, others)
        files = arguments.config_files.split() if arguments.config_files else None
        if arguments.compare:
            sys.argv[1:] = others  # RecBole reads what is left as settings
            return _compare(arguments, files)
        _reject_without_compare(arguments)
        datasets = datasets_to_pretrain_on(arguments.dataset, files, datasets=arguments.datasets)
        if arguments.tune or arguments.tune_resume:
            from recbole_prmkd.tune import run_sweep  # this import takes seconds

            sys.argv[1:] = others  # RecBole reads what is left as settings
            run_sweep(
                arguments.model,
                arguments.dataset,
                files,
                sweep_file=arguments.tune,
                trials=arguments.tune_trials,
                ray_address=arguments.ray_address,
                resume=arguments.tune_resume,
                trust_folder=arguments.tune_trust_folder,
            )
        elif datasets:
            if arguments.ray_address or arguments.nproc > 1:
                raise UserError("Pre-training runs in one process here: leave out --nproc and --ray_address.")
            say_reuse("the same command reuses finished item vectors and begins the pre-training again")
            pretrain(arguments.model or user_setting("model", files), datasets, files)
        elif arguments.nproc > 1 or arguments.world_size > 0:
            given = vars(arguments)
            sys.argv[1:] = others  # RecBole reads what is left as settings
            run_processes(
                arguments.model,
                arguments.dataset,
                files,
                **{name: given[name] for name in ("nproc", "world_size", "ip", "port", "group_offset")},
            )
        elif arguments.ray_address:
            from recbole_prmkd.tune import encode_on

            with encode_on(arguments.ray_address):
                run_recbole_prmkd(arguments.model, arguments.dataset, files)
        else:
            run_recbole_prmkd(arguments.model, arguments.dataset, files)
    except UserError as error:
        sys.exit(f"recbole_prmkd: {error}")


def _serve() -> None:
    """Use a trained student."""
    from recbole_prmkd.serving.command import serve

    say_reuse("the same command goes on after the last finished part")
    try:
        serve(sys.argv[1:])
    except UserError as error:
        sys.exit(f"recbole_prmkd: {error}")


def _check_options(arguments: argparse.Namespace, others: list[str]) -> None:
    """Reject what would be ignored."""
    for other in others:
        name, equals, value = other.partition("=")
        if not (name.startswith("--") and equals) or "=" in value:
            raise UserError(f"RecBole would ignore the argument {other!r}: write --key=value, or use a config file.")
        if name in ("--users", "--histories", "--unseen", "--output", "--format"):
            raise UserError(f"{name} is for trained students: add --recommend=RUN_FOLDER or --export=RUN_FOLDER.")
    for option in ("tune", "tune_resume", "compare", "ray_address"):
        if getattr(arguments, option) == "":  # a shell variable that is not set
            raise UserError(f"--{option}= is empty: give it a value, or leave it out.")
    searches = arguments.tune or arguments.tune_resume
    if arguments.tune_trials is not None and not searches:
        raise UserError("--tune_trials is for sweeps: add --tune=hyper/sasrec.yaml, or leave it out.")
    if arguments.tune_trust_folder and not (arguments.tune_resume or (arguments.compare and arguments.tune)):
        raise UserError(
            "--tune_trust_folder is for --tune_resume=FOLDER, and for --compare with --tune: add one of them, or leave "
            "--tune_trust_folder out."
        )
    if searches and not arguments.compare and (arguments.nproc > 1 or arguments.world_size > 0):
        raise UserError("A sweep trains each trial in one process: use max_concurrent in its file, not --nproc.")
    if arguments.ray_address and not searches and not arguments.compare and arguments.nproc > 1:
        raise UserError("--nproc trains on this machine alone: leave out --ray_address, or --nproc.")


def _compare(arguments: argparse.Namespace, files: list[str] | None) -> None:
    """Run the grid; exit code 1 where a cell has failed."""
    from recbole_prmkd.compare import run_comparison  # this import takes seconds

    say_reuse("the same command goes on; finished cells, sweeps, teachers and teacher caches are kept")
    for other in sys.argv[1:]:
        name = other.partition("=")[0]
        if name in _OF_CELLS:
            raise UserError(f"A comparison sets {name} of each cell: {_OF_CELLS[name]}.")
    if arguments.tune_resume:
        raise UserError("A comparison goes on by itself, its sweeps too: leave --tune_resume out.")
    if arguments.nproc > 1 or arguments.world_size > 0:
        raise UserError("A comparison runs each cell in one process: use --compare_jobs in place of --nproc.")
    outcome = run_comparison(
        arguments.compare,
        arguments.models or arguments.model,
        arguments.datasets or arguments.dataset,
        arguments.seeds,
        files,
        jobs=arguments.compare_jobs,
        ray_address=arguments.ray_address,
        sweep_file=arguments.tune,
        trials=arguments.tune_trials,
        trust_folder=arguments.tune_trust_folder,
    )
    print(f"Report: {outcome.folder / 'report.html'}")
    if outcome.failed:
        sys.exit("\n".join(["recbole_prmkd: Failed:", *(f"{name}: {error}" for name, error in outcome.failed.items())]))


_OF_CELLS = {
    "--kd": "name the values in --compare",
    "--seed": "name the seeds with --seeds",
    "--kd_save_ranks": "leave it out",
    "--train_stage": "leave it out, or leave --compare out",
}


def _reject_without_compare(arguments: argparse.Namespace) -> None:
    for name in ("models", "seeds", "compare_jobs"):
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name} is for comparisons: add --compare=none,prmkd, or leave it out.")


if __name__ == "__main__":
    main()
