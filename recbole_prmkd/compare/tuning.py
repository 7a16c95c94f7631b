"""The same search for the baseline as for what it is compared with: one sweep per data set, student and way.

All sweeps have the same file, the same number of trials and the first seed; each takes of the space the keys that its
student has, and the student alone no kd_ key. The winner on validation gives the settings of all seeds.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from recbole.utils import argument_list as host

from recbole_prmkd.compare.grid import BASELINE, Cell, Grid
from recbole_prmkd.compare.job import JOBS, Job
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config import HostView, host_view
from recbole_prmkd.recbole_host.run_files import no_command_line
from recbole_prmkd.teachers.ensemble import ENSEMBLE
from recbole_prmkd.tune.outcome import WINNER
from recbole_prmkd.tune.searchable import check_space
from recbole_prmkd.tune.settings import SweepSettings, read_sweep
from recbole_prmkd.tune.space import read_space

SWEEP, SWEEP_FILE = "sweep", "sweep.yaml"  # inside a job's folder


def read_tuning(file: str, trials: int | None) -> dict[str, Any]:
    """The sweep file as `comparison.json` keeps it.

    Raises:
        UserError: it cannot be read, or one of its keys is wrong.
    """
    return read_sweep(Path(file), trials).model_dump(mode="json", exclude_none=True)


def check_tuning(grid: Grid) -> None:
    """Refuse a search that any student or way could not make, or a space of which a student has no key.

    Raises:
        UserError: the key or the student is named.
    """
    used: set[str] = set()
    sizes: dict[tuple[str, str], dict[int, str]] = {}  # of each student's grids, with one way that has each
    for cell in _first_cells(grid):
        view = _view(grid, cell)
        space = space_of(grid, cell, view)
        used |= space.keys()
        if not space:
            raise UserError(
                f"--tune has no key to search for {cell.model}, {cell.kd}: add keys of the student itself, such as "
                "learning_rate, so that the student alone is searched too."
            )
        check_space(read_space(space), view)
        size = math.prod(len(domain.values) for domain in read_space(space))
        sizes.setdefault((cell.dataset, cell.model), {})[size] = cell.kd
    if grid.tune and grid.tune["search"] == "grid":
        for (_, model), own in sizes.items():
            if len(own) > 1:
                told = " and ".join(f"{number} settings for {model}, {kd}" for number, kd in list(own.items())[:2])
                raise UserError(
                    f"--tune with search: grid would try {told}: use random or optuna, which try as many for each."
                )
    if grid.tune:
        for key in sorted(grid.tune["space"].keys() - used):
            check_space(read_space({key: grid.tune["space"][key]}), _view(grid, grid.cells()[0]))


def space_of(grid: Grid, cell: Cell, view: HostView | None = None) -> dict[str, Any]:
    """What of the file's space this student and way can search."""
    known = {*(view or _view(grid, cell)).stock, *host.training_arguments}
    own = (grid.tune or {}).get("space", {})
    return {
        key: entry for key, entry in own.items() if (cell.kd != BASELINE if key.startswith("kd_") else key in known)
    }


def sweep_jobs(grid: Grid, folder: Path, ray_address: str | None = None) -> list[Job]:
    """The sweeps that have no winner yet."""
    jobs = [_job(grid, cell, folder, ray_address) for cell in _first_cells(grid)] if grid.tune else []
    return [job for job in jobs if not _winner(job.folder).is_file()]


def is_tuned(grid: Grid, cell: Cell) -> bool:
    """Whether the cell has the settings that it needs: none are searched, or its sweep has a winner."""
    return not grid.tune or cell.kd == ENSEMBLE or (cell.dataset, cell.model, cell.kd) in grid.tuned


def tuned_settings(grid: Grid, folder: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """The winners' settings by data set, student and way; a sweep that failed gives none."""
    found = {}
    for cell in _first_cells(grid):
        file = _winner(_folder(cell, folder))
        if file.is_file():
            best = yaml.safe_load(file.read_text(encoding="utf-8"))
            found[cell.dataset, cell.model, cell.kd] = {key: best[key] for key in space_of(grid, cell)}
    return found


def with_winners(grid: Grid, folder: Path) -> Grid:
    """The grid with the settings that its sweeps have found; as it is where it has none."""
    return replace(grid, tuned=tuned_settings(grid, folder)) if grid.tune else grid


def _first_cells(grid: Grid) -> list[Cell]:
    return [cell for cell in grid.cells() if cell.seed == grid.seeds[0] and cell.kd != ENSEMBLE]


def _job(grid: Grid, cell: Cell, folder: Path, ray_address: str | None) -> Job:
    sweep = SweepSettings.model_validate({**(grid.tune or {}), "space": space_of(grid, cell)})
    return Job(
        f"sweep of {cell.model} on {cell.dataset}, {cell.kd}",
        _folder(cell, folder),
        "tune",
        cell.model,
        cell.dataset,
        {**grid.settings_of(cell, tuned=False), "kd_save_ranks": False},
        {"sweep": sweep.model_dump(mode="json", exclude_none=True), "ray_address": ray_address},
    )


def _folder(cell: Cell, folder: Path) -> Path:
    return folder / JOBS / f"tune-{cell.dataset}-{cell.model}-{cell.kd}"


def _winner(folder: Path) -> Path:
    return folder / SWEEP / WINNER


def _view(grid: Grid, cell: Cell) -> HostView:
    with no_command_line():
        return host_view(cell.model, cell.dataset, None, grid.settings_of(cell, tuned=False))
