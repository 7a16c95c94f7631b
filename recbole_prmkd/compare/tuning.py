"""The same search for the baseline as for what it is compared with: one sweep per data set, student and KD method.

All sweeps have the same file, the same number of trials and the first seed; each takes of the space the keys that its
student has, the student alone no kd_ key, and the warm-started one those kd_ keys that it reads. The winner on
validation gives the settings of all seeds.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from recbole.utils import argument_list as host

from recbole_prmkd.compare.grid import BASELINE, Cell, Grid
from recbole_prmkd.compare.job import JOBS, Job
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config import HostView, host_view
from recbole_prmkd.recbole_host.keys import WARM_START
from recbole_prmkd.recbole_host.run_files import no_command_line
from recbole_prmkd.teachers.ensemble import ENSEMBLE
from recbole_prmkd.tune.cross_checks import ALONE
from recbole_prmkd.tune.outcome import read_winner
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
    """Reject a search that any student or KD method could not make, or a space of which a student has no key.

    Raises:
        UserError: the key or the student is named.
    """
    tune = grid.tune or {"space": {}}
    used: set[str] = set()
    sizes: dict[tuple[str, str], tuple[int, str]] = {}  # of each student's first grid, with its KD method
    for cell in _first_cells(grid):
        view = _view(grid, cell)
        space = space_of(grid, cell, view)
        used |= space.keys()
        if not space:
            raise UserError(
                f"--tune has no key to search for {cell.model}, {cell.kd}: add keys of the student itself, such as "
                "learning_rate, so that the student alone is searched too."
            )
        domains = read_space(space)
        check_space(domains, view)
        size = math.prod(len(domain.values) for domain in domains)
        first, kd = sizes.setdefault((cell.dataset, cell.model), (size, cell.kd))
        if tune.get("search") == "grid" and size != first:
            raise UserError(
                f"--tune with search: grid would try {first} settings for {cell.model}, {kd} and {size} settings for "
                f"{cell.model}, {cell.kd}: use random or optuna, which try as many for each."
            )
    unused = {key: entry for key, entry in tune["space"].items() if key not in used}
    check_space(read_space(unused), _view(grid, grid.cells()[0]))


def space_of(grid: Grid, cell: Cell, view: HostView | None = None) -> dict[str, Any]:
    """What of the file's space this student and KD method can search."""
    keys = {*(view or _view(grid, cell)).stock, *host.training_arguments}
    own = (grid.tune or {}).get("space", {})
    if cell.kd != BASELINE:
        keys |= {key for key in own if key.startswith("kd_") and (cell.kd != WARM_START or key in ALONE)}
    return {key: entry for key, entry in own.items() if key in keys}


def sweep_jobs(grid: Grid, folder: Path, ray_address: str | None = None, trust_folder: bool = False) -> list[Job]:
    """The sweeps that have no winner yet; trust_folder: go on with those of another user."""
    jobs = []
    for cell in _first_cells(grid):
        if _winner(grid, cell, folder) is None:
            sweep = SweepSettings.model_validate({**(grid.tune or {}), "space": space_of(grid, cell)})
            more: dict[str, Any] = {"ray_address": ray_address, "trust_folder": trust_folder}
            more["sweep"] = sweep.model_dump(mode="json", exclude_none=True)
            name, own = f"sweep of {cell.model} on {cell.dataset}, {cell.kd}", _job_folder(cell, folder)
            settings = {**grid.settings_of(cell, tuned=False), "kd_save_ranks": False, "kd_guard": False}
            jobs.append(Job(name, own, "tune", cell.model, cell.dataset, settings, more))
    return jobs


def is_tuned(grid: Grid, cell: Cell) -> bool:
    """Whether the cell has the settings that it needs: none are searched, or its sweep has a winner."""
    return not grid.tune or cell.kd == ENSEMBLE or (cell.dataset, cell.model, cell.kd) in grid.tuned


def with_winners(grid: Grid, folder: Path) -> Grid:
    """The grid with the settings that its sweeps have found; a sweep that failed gives none."""
    found = {}
    for cell in _first_cells(grid):
        if (best := _winner(grid, cell, folder)) is not None:
            found[cell.dataset, cell.model, cell.kd] = best
    return replace(grid, tuned=found)


def _first_cells(grid: Grid) -> list[Cell]:
    """The cells whose settings are searched."""
    return [cell for cell in grid.cells() if grid.tune and cell.seed == grid.seeds[0] and cell.kd != ENSEMBLE]


def _winner(grid: Grid, cell: Cell, folder: Path) -> dict[str, Any] | None:
    """The best values of what is searched; None where the sweep has not found them."""
    best, keys = read_winner(_job_folder(cell, folder) / SWEEP), space_of(grid, cell).keys()
    return {key: best[key] for key in keys} if best is not None and keys <= best.keys() else None


def _job_folder(cell: Cell, folder: Path) -> Path:
    return folder / JOBS / f"tune-{cell.dataset}-{cell.model}-{cell.kd}"


def _view(grid: Grid, cell: Cell) -> HostView:
    with no_command_line():
        return host_view(cell.model, cell.dataset, None, grid.settings_of(cell, tuned=False))
