"""The results of a comparison as they lie on disk: one data frame, a row per cell and one per teacher."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_prmkd.compare.cost import COSTS, read_costs
from recbole_prmkd.compare.grid import Cell, Grid
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import teacher_seed
from recbole_prmkd.results.run_folder import RANKS, read_result
from recbole_prmkd.results.schema import RunResult, StudentResult, TeacherResult

TEACHER = "teacher"  # the kd of a teacher's row
MILLISECONDS = "ms_per_1000_users"
PARTS = {"valid": "valid", "test": "test", "valid unseen": "valid_unseen", "test unseen": "test_unseen"}


@dataclass(frozen=True)
class Gathered:
    """All that a report is made from.

    cells: columns dataset, model, kd, seed, one for each metric (`test ndcg@10`, `test unseen ndcg@10`, `valid ...`),
    parameters, train_seconds, epochs, peak_memory_mb, ms_per_1000_users (of serving, measured once for all seeds),
    device, threads, commit, folder; teachers are rows of kd `teacher`. runs: the results themselves. missing: cells of
    the grid without one. costs: by data set and model.
    """

    grid: Grid
    folder: Path
    cells: pd.DataFrame
    runs: dict[Cell, RunResult]
    missing: list[Cell]
    costs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Metrics that every result has, such as `ndcg@10`."""
        names = [set(run.student.test) for run in self.runs.values()]
        return sorted(set.intersection(*names)) if names else []

    def ranks(self, cell: Cell) -> Mapping[str, np.ndarray] | None:
        """The cell's test rows; None where it wrote none."""
        file = cell.folder(self.folder) / RANKS
        if cell not in self.runs or not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def gather(grid: Grid, folder: Path) -> Gathered:
    """Read every result of the grid that is there."""
    runs, missing = {}, []
    for cell in grid.cells():
        try:
            runs[cell] = read_result(cell.folder(folder))
        except UserError:
            missing.append(cell)
    costs = {}
    for dataset in grid.datasets:
        for model in grid.models:
            stored = read_costs(folder / dataset / model / COSTS)
            if stored is not None:
                costs[dataset, model] = stored
    rows = [_row(cell, run, folder, serving(costs, cell.dataset, cell.model, cell.kd)) for cell, run in runs.items()]
    rows += _teacher_rows(grid, runs, costs)
    return Gathered(grid, folder, pd.DataFrame(rows), runs, missing, costs)


def serving(costs: Mapping[tuple[str, str], dict[str, Any]], dataset: str, model: str, kd: str) -> dict[str, Any]:
    """What `cost.json` says of a student and way, or of a teacher; empty where nothing was measured."""
    if kd != TEACHER:
        return costs.get((dataset, model), {}).get("students", {}).get(kd, {})
    measured = (own["teachers"].get(model) for (where, _), own in costs.items() if where == dataset)
    return next((entry for entry in measured if entry), {})


def _row(cell: Cell, run: RunResult, folder: Path, cost: Mapping[str, Any]) -> dict[str, Any]:
    student = run.student
    return {
        **vars(cell),
        **_metrics(student),
        "parameters": student.parameters,
        "train_seconds": student.train_seconds,
        "epochs": student.epochs,
        "peak_memory_mb": run.peak_memory_mb,
        MILLISECONDS: cost.get("ms"),
        "device": run.device,
        "threads": run.threads,
        "commit": run.commit,
        "folder": str(cell.folder(folder).relative_to(folder)),
    }


def _teacher_rows(
    grid: Grid, runs: Mapping[Cell, RunResult], costs: Mapping[tuple[str, str], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Each teacher of each data set once: all cells have the same ones."""
    seen: set[tuple[str, str]] = set()
    for cell, run in runs.items():
        for name, teacher in run.teachers.items():
            if (cell.dataset, name) not in seen:
                seen.add((cell.dataset, name))
                yield {
                    "dataset": cell.dataset,
                    "model": name,
                    "kd": TEACHER,
                    "seed": teacher_seed(name, {"kd_teacher_seed": grid.seeds[0], **run.config}),
                    **_metrics(teacher),
                    "parameters": teacher.parameters,
                    "train_seconds": teacher.seconds,
                    "peak_memory_mb": teacher.peak_memory_mb,
                    MILLISECONDS: serving(costs, cell.dataset, name, TEACHER).get("ms"),
                }


def _metrics(measured: StudentResult | TeacherResult) -> dict[str, float]:
    return {
        f"{label} {metric}": value for label, part in PARTS.items() for metric, value in getattr(measured, part).items()
    }
