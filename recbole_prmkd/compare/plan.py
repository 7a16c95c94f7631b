"""Which jobs a comparison has left: cells, the preparation of their teachers, and what serving costs."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from recbole_prmkd.compare.cost import COSTS, read_costs
from recbole_prmkd.compare.grid import BASELINE, Cell, Grid
from recbole_prmkd.compare.job import JOBS, Job, damaged
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import WARM_START, WITHOUT_TEACHERS, defaults, preset
from recbole_prmkd.results.run_folder import read_result
from recbole_prmkd.results.schema import RunResult
from recbole_prmkd.teachers.ensemble import ENSEMBLE

# Keys whose stored value is what a run makes of the default, not the default itself.
_RESOLVED = {
    "kd",
    "kd_teachers",
    "kd_teacher_minutes",
    "kd_teacher_seed",
    "kd_output_dir",
    "kd_cache_dir",
    "kd_teacher_dir",
    "kd_save_ranks",
}


def cell_job(grid: Grid, cell: Cell, folder: Path) -> Job:
    """The cell's run, after its teachers where it needs any."""
    settings = grid.settings_of(cell)
    teachers = cell.kd != BASELINE or settings.get("kd_item_init", "none") not in ("none", None)
    needs = _prepared(cell.dataset, cell.model, folder) if teachers else None
    return Job(str(cell), cell.folder(folder), "train", cell.model, cell.dataset, settings, needs=needs)


def result_of(job: Job) -> RunResult | None:
    """The result of this very job, with these settings; None where it has not ended."""
    try:
        return read_result(job.folder) if job.written() and not damaged(job.folder) else None
    except UserError:
        return None


def check_finished(grid: Grid, folder: Path) -> None:
    """Reject a folder with cells whose preset or defaults were others: a mean over both would be of two methods.

    Raises:
        UserError: the first such cell and key.
    """
    for cell in grid.cells():
        job = cell_job(grid, cell, folder)
        run = result_of(job)
        if run is None:
            continue
        for key, value in {**defaults(), **preset(cell.kd)}.items():
            before = run.config.get(key, defaults()[key])
            if key not in {*job.settings, *_RESOLVED} and before != value:
                raise UserError(
                    f"{cell} was made with {key} {before}, which is {value} by now: name another --kd_output_dir, or "
                    f"set {key}."
                )


def preparations(grid: Grid, left: Sequence[Job], folder: Path, begun: Collection[str] = ()) -> list[Job]:
    """A job for each data set and student with cells left that need teachers: these are made once, by one process.

    Those of a data set follow one another, since all its students learn from the same teachers. `kd_rebuild` holds for
    the first one of a data set that has not `begun`, of which no cell is finished: finished cells learnt from what is
    there.
    """
    made: list[Job] = []
    needed = {job.needs for job in left}
    for dataset in grid.datasets:
        before: Path | None = None
        for model in grid.models:
            if _prepared(dataset, model, folder) in needed:
                job = preparation(grid, dataset, model, folder)
                rebuild = before is None and dataset not in begun and grid.settings.get("kd_rebuild", False)
                made.append(replace(job, needs=before, settings={**job.settings, "kd_rebuild": rebuild}))
                before = job.folder
    return made


def preparation(grid: Grid, dataset: str, model: str, folder: Path) -> Job:
    """The job that makes all teachers which any cell of this data set and student asks for."""
    # A KD method that asks for every teacher; `single` takes the first alone, others a control or none.
    less = {BASELINE: 0, WARM_START: 1, **dict.fromkeys(WITHOUT_TEACHERS, 2), "single": 3}
    kd = max(grid.kds, key=lambda kd: less.get(kd, 4))
    settings = {**grid.settings_of(Cell(dataset, model, kd, grid.seeds[0])), "kd_save_ranks": False}
    if WARM_START in grid.kds and kd != ENSEMBLE:  # whose cells want the texts' vectors
        settings.setdefault("kd_item_init", "text")
    name = f"teachers of {dataset} for {model}"
    return Job(name, _prepared(dataset, model, folder), "prepare", model, dataset, settings)


def cost_jobs(grid: Grid, folder: Path) -> list[Job]:
    """A measurement for each data set and student that has none for these KD methods yet."""
    jobs = []
    for dataset in grid.datasets:
        for model in grid.models:
            file, ensemble = folder / dataset / model / COSTS, ENSEMBLE in grid.kds
            students = {
                kd: {"checkpoint": str(path), "settings": grid.settings_of(Cell(dataset, model, kd, grid.seeds[0]))}
                for kd in grid.kds
                if (path := _checkpoint(grid, dataset, model, kd, folder)) is not None
            }
            measured = (read_costs(file) or {"students": ()})["students"]
            if students and not {*students, *([ENSEMBLE] if ensemble else [])} <= {*measured}:
                more = {"students": students, "file": str(file), "ensemble": ensemble}
                settings = preparation(grid, dataset, model, folder).settings
                name, own = f"serving {model} on {dataset}", folder / JOBS / f"cost-{dataset}-{model}"
                jobs.append(Job(name, own, "cost", model, dataset, settings, more))
    return jobs


def _checkpoint(grid: Grid, dataset: str, model: str, kd: str, folder: Path) -> Path | None:
    """The stored student of the first finished seed; teachers that are served themselves leave none."""
    for seed in grid.seeds:
        cell = Cell(dataset, model, kd, seed).folder(folder)
        try:
            name = read_result(cell).student.checkpoint
        except UserError:
            continue
        if name and (cell / name).is_file() and not damaged(cell):
            return cell / name
    return None


def _prepared(dataset: str, model: str, folder: Path) -> Path:
    return folder / JOBS / f"prepare-{dataset}-{model}"
