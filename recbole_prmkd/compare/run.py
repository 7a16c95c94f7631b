"""The whole comparison, as visible steps:

grid, checked -> folder -> sweeps, with --tune -> teachers, once for each data set and student -> cells -> serving cost
-> report

Cells that have ended with these settings are not run again, so the same command goes on after an interruption.
"""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_prmkd.compare.cost import COSTS, read_costs
from recbole_prmkd.compare.grid import (
    BASELINE,
    LOCK,
    Cell,
    Grid,
    check_grid,
    in_folder,
    make_grid,
    open_folder,
    usual_folder,
)
from recbole_prmkd.compare.job import JOBS, LOG, Job
from recbole_prmkd.compare.page import write_report
from recbole_prmkd.compare.schedule import (
    Local,
    OnRay,
    Workers,
    chosen_gpus,
    most_cpus,
    run_jobs,
    visible_gpus,
    workers_here,
)
from recbole_prmkd.compare.tuning import check_tuning, is_tuned, read_tuning, sweep_jobs, with_winners
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config import user_setting
from recbole_prmkd.recbole_host.keys import defaults, preset
from recbole_prmkd.results.run_folder import RESULT, read_result
from recbole_prmkd.results.schema import RunResult
from recbole_prmkd.teachers.ensemble import ENSEMBLE
from recbole_prmkd.tune.cluster import check_address, cluster

# Keys whose stored value is no default as it stands: what a run makes of them.
_SETTLED = {"kd", "kd_teachers", "kd_teacher_seed", "kd_output_dir", "kd_cache_dir", "kd_teacher_dir", "kd_save_ranks"}


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
) -> Outcome:
    """Train and test every cell of the grid, measure what serving costs, write the report.

    Args:
        kds, models, datasets: names separated by commas; kds are those of the key `kd`.
        seeds: how many from 2020 on (5), or the seeds separated by commas.
        config_file_list, config_dict: settings of all cells, as for `run_recbole_prmkd`; the command line is read too.
        jobs: processes at a time; None: one for each GPU, or as many as the cores allow.
        ray_address: of a Ray cluster to run the cells on; None: processes on this machine.
        sweep_file, trials: search settings for each data set, student and way alike before the cells; see `tuning`.
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
    named = user_setting("kd_output_dir", config_file_list, config_dict)
    folder = Path(str(named)).resolve() if named else usual_folder(grid)
    check_grid(grid, folder)
    grid = grid.with_data()
    in_folder(grid, folder)
    check_finished(with_winners(grid, folder), folder)
    gpus = chosen_gpus(user_setting("gpu_id", config_file_list, config_dict), gpus)

    with cluster(ray_address) if ray_address else nullcontext(), _alone(folder):
        whole = open_folder(grid, folder)
        print(f"Comparison of {len(grid.cells())} cells in {folder}", file=sys.stderr, flush=True)
        use_gpu = bool(grid.settings.get("use_gpu", True))

        def here(number: int | None) -> Local:
            return workers_here(number, gpus if use_gpu else [])

        def workers(number: int | None) -> Workers:
            return OnRay(min(here(number).threads, most_cpus()), number, use_gpu) if ray_address else here(number)

        sweeps = sweep_jobs(grid, folder, ray_address)  # one at a time: each runs its trials side by side
        failed = run_jobs(sweeps, here(1), "tune", title="sweeps") if sweeps else {}
        grid = with_winners(grid, folder)
        cells = {cell: _cell_job(grid, cell, folder) for cell in grid.cells() if is_tuned(grid, cell)}
        left = [job for cell, job in cells.items() if not is_finished(cell, job)]
        begun = {cell.dataset for cell in whole.cells() if (cell.folder(folder) / RESULT).is_file()}
        todo = [*preparations(grid, left, folder, begun), *left]
        if todo:
            failed |= run_jobs(todo, workers(jobs), "train", finished=len(cells) - len(left))
        measured = cost_jobs(with_winners(whole, folder), folder)
        if measured:  # one at a time, so that none disturbs another
            failed |= run_jobs(measured, workers(1), "cost", title="serving cost")
    by_name = {job.folder: job.name for job in (*sweeps, *todo, *measured)}
    told = {by_name[path]: f"{error} (log: {path / LOG})" for path, error in failed.items()}
    write_report(whole, folder, told)
    return Outcome(folder, told)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
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


def is_finished(cell: Cell, job: Job) -> bool:
    """Whether the cell's folder holds the result of this very job."""
    return _result(cell, job) is not None


def _result(cell: Cell, job: Job) -> RunResult | None:
    if not job.written():
        return None
    try:
        run = read_result(job.folder)
    except UserError:
        return None
    made = run.config["model"], run.config["dataset"], run.config["kd"], run.seed
    return run if made == (cell.model, cell.dataset, cell.kd, cell.seed) else None


def check_finished(grid: Grid, folder: Path) -> None:
    """Refuse a folder with cells whose preset or defaults were other ones: a mean over both would be of two methods.

    Raises:
        UserError: the first such cell and key.
    """
    for cell in grid.cells():
        job = _cell_job(grid, cell, folder)
        run = _result(cell, job)
        if run is None:
            continue
        if run.distillation and "kd_every" not in run.distillation[0]:  # older than what is usual by now
            raise UserError(
                f"{cell} was made before its epochs said kd_every, so its rows and weights may be other ones: name "
                "another --kd_output_dir."
            )
        for key, value in {**defaults(), **preset(cell.kd)}.items():
            before = run.config.get(key, defaults()[key])
            if key not in {*job.settings, *_SETTLED} and before != value:
                raise UserError(
                    f"{cell} was made with {key} {before}, which is {value} by now: name another --kd_output_dir, or "
                    f"set {key}."
                )


def preparations(grid: Grid, left: Sequence[Job], folder: Path, begun: Collection[str] = ()) -> list[Job]:
    """A job for each data set and student with cells left that need teachers: these are made once, by one process.

    Those of a data set follow one another, since all its students learn from the same teachers. `left` is changed:
    its jobs wait for their preparation. `kd_rebuild` holds for the first one of a data set that has not `begun`, of
    which no cell is finished, since others learn, or have learnt, from what that makes.
    """
    made: list[Job] = []
    for dataset in grid.datasets:
        before: Path | None = None
        fresh = dataset not in begun and grid.settings.get("kd_rebuild", False)
        for model in grid.models:
            mine = [job for job in left if (job.dataset, job.model) == (dataset, model) and _needs_teachers(job)]
            if mine:
                prepared = preparation(grid, dataset, model, folder, before, rebuild=fresh and before is None)
                made.append(prepared)
                before = prepared.folder
    return made


def preparation(
    grid: Grid, dataset: str, model: str, folder: Path, after: Path | None = None, rebuild: bool = False
) -> Job:
    """The job that makes all teachers which any cell of this data set and student asks for."""
    cells = [Cell(dataset, model, kd, grid.seeds[0]) for kd in grid.kds]
    distilled = [cell for cell in cells if cell.kd != BASELINE]
    first = distilled[0] if distilled else cells[0]
    settings = {**grid.settings_of(first), "kd_rebuild": rebuild, "kd_save_ranks": False}
    if distilled:
        named = [name for cell in distilled for name in grid.config(cell)["kd_teachers"]]
        settings |= {"kd": _takes_all(distilled), "kd_teachers": list(dict.fromkeys(named))}
    name = f"prepare-{dataset}-{model}"
    return Job(
        f"teachers of {dataset} for {model}", folder / JOBS / name, "prepare", model, dataset, settings, needs=after
    )


def _takes_all(distilled: Sequence[Cell]) -> str:
    """A way to distil that asks for every teacher; `single` takes the first alone."""
    return next((cell.kd for cell in distilled if cell.kd != "single"), "mean")


def _needs_teachers(job: Job) -> bool:
    return job.settings["kd"] != BASELINE or job.settings.get("kd_item_init", "none") not in ("none", None)


def _cell_job(grid: Grid, cell: Cell, folder: Path) -> Job:
    job = Job(str(cell), cell.folder(folder), "train", cell.model, cell.dataset, grid.settings_of(cell))
    if not _needs_teachers(job):
        return job
    needs = folder / JOBS / f"prepare-{cell.dataset}-{cell.model}"
    return Job(job.name, job.folder, "train", cell.model, cell.dataset, job.settings, needs=needs)


def cost_jobs(grid: Grid, folder: Path) -> list[Job]:
    """A measurement for each data set and student of which there is none for these ways to distil yet."""
    jobs = []
    for dataset in grid.datasets:
        for model in grid.models:
            checkpoints = _checkpoints(grid, dataset, model, folder)
            file = folder / dataset / model / COSTS
            stored = read_costs(file)
            wanted = {*checkpoints, *({ENSEMBLE} & {*grid.kds})}
            if not checkpoints or (stored is not None and wanted <= {*stored["students"]}):
                continue
            settings = preparation(grid, dataset, model, folder).settings
            students = {
                kd: {"checkpoint": str(path), "settings": grid.settings_of(Cell(dataset, model, kd, grid.seeds[0]))}
                for kd, path in checkpoints.items()
            }
            more = {"students": students, "file": str(file), "ensemble": ENSEMBLE in wanted}
            name = f"serving {model} on {dataset}"
            jobs.append(Job(name, folder / JOBS / f"cost-{dataset}-{model}", "cost", model, dataset, settings, more))
    return jobs


def _checkpoints(grid: Grid, dataset: str, model: str, folder: Path) -> dict[str, Path]:
    """Each way's stored student, of its first finished seed; teachers that are served themselves leave none."""
    found = {}
    for kd in grid.kds:
        for seed in grid.seeds:
            cell = Cell(dataset, model, kd, seed).folder(folder)
            try:
                name = read_result(cell).student.checkpoint
            except UserError:
                continue
            if name and (cell / name).is_file():
                found[kd] = cell / name
                break
    return found
