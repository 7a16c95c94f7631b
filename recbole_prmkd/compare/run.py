"""The whole comparison, as visible steps:

grid, checked -> folder -> sweeps, with --tune -> teachers, once for each data set and student -> cells -> serving cost
-> report

Cells that have ended with these settings are not run again, so the same command goes on after an interruption.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_prmkd.compare.grid import check_grid, default_folder, in_folder, make_grid, open_folder
from recbole_prmkd.compare.job import LOG
from recbole_prmkd.compare.page import write_report
from recbole_prmkd.compare.plan import cell_job, check_finished, cost_jobs, preparations, result_of
from recbole_prmkd.compare.schedule import OnRay, Workers, chosen_gpus, run_jobs, visible_gpus, workers_here
from recbole_prmkd.compare.tuning import check_tuning, is_tuned, read_tuning, sweep_jobs, with_winners
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config import user_setting
from recbole_prmkd.results.names import for_folder
from recbole_prmkd.results.run_folder import RESULT
from recbole_prmkd.storage.locks import LOCK
from recbole_prmkd.tune.cluster import check_address, cluster


@dataclass(frozen=True)
class Outcome:
    """What a comparison left. failed: what did not end well, each with its error and its log."""

    folder: Path
    failed: dict[str, str]


def run_comparison(
    kds: str,
    models: str | None = None,
    datasets: str | None = None,
    seeds: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    ray_address: str | None = None,
    sweep_file: str | None = None,
    trials: int | None = None,
    trust_folder: bool = False,
) -> Outcome:
    """Train and test every cell of the grid, measure what serving costs, write the report.

    Args:
        kds, models, datasets: names separated by commas; kds are those of the key `kd`.
        seeds: how many from 2020 on (5), or the seeds separated by commas.
        config_file_list, config_dict: settings of all cells, as for `run_recbole_prmkd`; the command line is read too.
        jobs: processes at a time; None: one for each GPU, or as many as the cores allow.
        ray_address: of a Ray cluster to run the cells on; None: processes on this machine.
        sweep_file, trials: search settings for each data set, student and KD method alike first; see `tuning`.
        trust_folder: go on with sweeps of another user; whoever can write to their folders can have code run.
    Raises:
        UserError: bad input, in one sentence, before anything is written.
    """
    gpus = visible_gpus()
    check_address(ray_address)
    if jobs is not None and jobs < 1:
        raise UserError(f"--compare_jobs={jobs} is not legal: give 1 or more, or leave it out.")
    grid = make_grid(kds, models, datasets, seeds, config_file_list, config_dict)
    if sweep_file is not None:
        grid = replace(grid, tune=read_tuning(sweep_file, trials))
        check_tuning(grid)
    for name in grid.datasets:
        if name != for_folder(name) or name in (".", ".."):
            raise UserError(
                f"The data set {name!r} cannot be the name of a folder in a comparison: give it another name."
            )
    named = user_setting("kd_output_dir", config_file_list, config_dict)
    folder = Path(str(named)).resolve() if named else default_folder(grid)
    check_grid(grid, folder)
    grid = grid.with_data()
    in_folder(grid, folder)
    check_finished(with_winners(grid, folder), folder)
    use_gpu = bool(grid.settings.get("use_gpu", True))
    gpus = chosen_gpus(user_setting("gpu_id", config_file_list, config_dict), gpus) if use_gpu else []

    def workers(number: int | None) -> Workers:
        here = workers_here(number, gpus)
        return OnRay(here.threads, number, use_gpu) if ray_address else here

    with cluster(ray_address) if ray_address else nullcontext(), one_at_a_time(folder):
        whole = open_folder(grid, folder)
        print(f"Comparison of {len(grid.cells())} cells in {folder}", file=sys.stderr, flush=True)
        sweeps = sweep_jobs(grid, folder, ray_address, trust_folder)  # one at a time: each runs its trials side by side
        failed = run_jobs(sweeps, workers_here(1, gpus), "tune", title="sweeps") if sweeps else {}
        grid = with_winners(grid, folder)
        cells = [cell_job(grid, cell, folder) for cell in grid.cells() if is_tuned(grid, cell)]
        left = [job for job in cells if result_of(job) is None]
        begun = {cell.dataset for cell in whole.cells() if (cell.folder(folder) / RESULT).is_file()}
        todo = [*preparations(grid, left, folder, begun), *left]
        failed |= run_jobs(todo, workers(jobs), "train", finished=len(cells) - len(left)) if todo else {}
        for job in cells:
            if result_of(job) is not None:
                job.note_files()
        costs = cost_jobs(with_winners(whole, folder), folder)  # one at a time, so that none disturbs another
        failed |= run_jobs(costs, workers(1), "cost", title="serving cost") if costs else {}
    by_name = {job.folder: job.name for job in (*sweeps, *todo, *costs)}
    errors = {by_name[path]: f"{error} (log: {path / LOG})" for path, error in failed.items()}
    write_report(whole, folder, errors)
    return Outcome(folder, errors)


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Inside, no other comparison writes to the folder; a process that is killed leaves it free.

    Raises:
        UserError: another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"Another comparison runs in {folder}: wait for its end, or name another --kd_output_dir."
        ) from None
