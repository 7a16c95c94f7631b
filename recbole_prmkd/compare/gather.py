"""The results of a comparison as they lie on disk: one data frame, a row per cell and one per teacher."""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from recbole_prmkd.compare.cost import COSTS, read_costs
from recbole_prmkd.compare.grid import Cell, Grid
from recbole_prmkd.compare.job import damaged
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import teacher_seed
from recbole_prmkd.results.run_folder import RANKS, read_result
from recbole_prmkd.results.schema import RunResult, StudentResult, TeacherResult

TEACHER = "teacher"  # the kd of a teacher's row
PARTS = {"valid": "valid", "test": "test", "valid unseen": "valid_unseen", "test unseen": "test_unseen"}
Costs = Mapping[tuple[str, str], Mapping[str, Any]]  # content of cost.json by data set and student


@dataclass(frozen=True)
class Gathered:
    """All that a report is made from.

    cells: columns dataset, model, kd, seed, one for each metric (`test ndcg@10`, `test unseen ndcg@10`, `valid ...`),
    parameters, train_seconds, epochs, peak_memory_mb, ms_per_1000_users (of serving, measured once for all seeds),
    device, threads, commit, folder, and with kd_guard `kept`, the kd of the student that it kept; teachers are rows of
    kd `teacher`. missing: cells of the grid without a result.
    """

    grid: Grid
    folder: Path
    cells: pd.DataFrame
    runs: Mapping[Cell, RunResult]
    missing: list[Cell]
    costs: Costs = field(default_factory=dict)

    @property
    def metrics(self) -> list[str]:
        """Metrics that every result has, such as `ndcg@10`."""
        names = [set(run.student.test) for run in self.runs.values()]
        return sorted(set.intersection(*names)) if names else []

    def runs_of(self, dataset: str, model: str | None = None, kd: str | None = None) -> list[RunResult]:
        """Results on a data set; of one student or all, with one KD method or all."""
        return [
            run
            for cell, run in self.runs.items()
            if cell.dataset == dataset and model in (None, cell.model) and kd in (None, cell.kd)
        ]

    def ranks(self, cell: Cell) -> Mapping[str, np.ndarray] | None:
        """The cell's `test_ranks.npz`; None where it has none."""
        file = cell.folder(self.folder) / RANKS
        if cell not in self.runs or not file.is_file():
            return None
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, BadZipFile, zlib.error) as error:
            getLogger().warning(f"{file} is left out, since it is damaged ({error}).")
            return None


def gather(grid: Grid, folder: Path) -> Gathered:
    """Read every result of the grid that is there."""
    runs, missing = {}, []
    for cell in grid.cells():
        try:
            run = read_result(cell.folder(folder))
        except UserError:
            missing.append(cell)
        else:
            if damaged(cell.folder(folder)):
                missing.append(cell)
            else:
                runs[cell] = run
    files = {(dataset, model): folder / dataset / model / COSTS for dataset in grid.datasets for model in grid.models}
    costs = {student: stored for student, file in files.items() if (stored := read_costs(file)) is not None}
    cells = pd.DataFrame([*_cell_rows(runs, folder, costs), *_teacher_rows(grid, runs, costs)])
    return Gathered(grid, folder, cells, runs, missing, costs)


def serving(costs: Costs, dataset: str, model: str, kd: str) -> Mapping[str, Any]:
    """What `cost.json` says of a student and KD method, or of a teacher; empty where nothing was measured."""
    if kd != TEACHER:
        return costs.get((dataset, model), {}).get("students", {}).get(kd, {})
    measured = (own["teachers"].get(model) for (where, _), own in costs.items() if where == dataset)
    return next((entry for entry in measured if entry), {})


def _cell_rows(runs: Mapping[Cell, RunResult], folder: Path, costs: Costs) -> Iterator[dict[str, Any]]:
    for cell, run in runs.items():
        yield {
            **vars(cell),
            **_metrics(run.student),
            "parameters": run.student.parameters,
            "train_seconds": run.student.train_seconds,
            "epochs": run.student.epochs,
            "peak_memory_mb": run.peak_memory_mb,
            "ms_per_1000_users": serving(costs, cell.dataset, cell.model, cell.kd).get("ms"),
            "device": run.device,
            "threads": run.threads,
            "commit": run.commit,
            "folder": str(cell.folder(folder).relative_to(folder)),
            **({"kept": run.guard.kept} if run.guard else {}),
        }


def _teacher_rows(grid: Grid, runs: Mapping[Cell, RunResult], costs: Costs) -> Iterator[dict[str, Any]]:
    """Each teacher of each data set once: all cells have the same ones."""
    found: dict[tuple[str, str], tuple[TeacherResult, RunResult]] = {}
    for cell, run in runs.items():
        for name, teacher in run.teachers.items():
            found.setdefault((cell.dataset, name), (teacher, run))
    for (dataset, name), (teacher, run) in found.items():
        yield {
            "dataset": dataset,
            "model": name,
            "kd": TEACHER,
            "seed": teacher_seed(name, {"kd_teacher_seed": grid.seeds[0], **run.config}),
            **_metrics(teacher),
            "parameters": teacher.parameters,
            "train_seconds": teacher.seconds,
            "peak_memory_mb": teacher.peak_memory_mb,
            "ms_per_1000_users": serving(costs, dataset, name, TEACHER).get("ms"),
        }


def _metrics(measured: StudentResult | TeacherResult) -> dict[str, float]:
    return {
        f"{label} {metric}": value for label, part in PARTS.items() for metric, value in getattr(measured, part).items()
    }
