"""The report: report.html, one file that needs no network and no script, with results.csv and the tables beside it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from recbole_prmkd.compare import statistics
from recbole_prmkd.compare.cost import AGAIN
from recbole_prmkd.compare.figures import pictures
from recbole_prmkd.compare.gather import Gathered, gather
from recbole_prmkd.compare.grid import Grid
from recbole_prmkd.compare.tables import (
    NOTE,
    cost_table,
    groups_table,
    headline,
    headline_table,
    kd_name,
    paired_table,
    users_table,
    write_tables,
)
from recbole_prmkd.recbole_host.config import RANKING_ARGS
from recbole_prmkd.results.names import for_csv
from recbole_prmkd.results.schema import RunResult
from recbole_prmkd.tune.settings import SweepSettings

PAGE, RESULTS = "report.html", "results.csv"


def write_report(grid: Grid, folder: Path, failed: Mapping[str, str] | None = None) -> None:
    """Write results.csv, table.md, table.tex and report.html from the results that are there.

    Args:
        failed: what did not end well, with its error, for the page.
    """
    gathered = gather(grid, folder)
    columns = headline(gathered)
    summary = statistics.summary(gathered, columns)
    for_csv(gathered.cells).to_csv(folder / RESULTS, index=False, errors="replace")
    write_tables(summary, folder)
    page = _page(gathered, summary, columns, failed or {})
    (folder / PAGE).write_text(page, encoding="utf-8", errors="replace")


def _page(gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], failed: Mapping[str, str]) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    grid, runs = gathered.grid, list(gathered.runs.values())
    sweep = SweepSettings.model_validate(grid.tune) if grid.tune else None
    return environment.get_template("page.html").render(
        title=f"{', '.join(grid.models)} on {', '.join(grid.datasets)}",
        written=f"{datetime.now():%d %B %Y, %H:%M}",
        grid=grid,
        sweep=sweep,
        kds=[kd_name(kd) for kd in grid.kds],
        finished=len(runs),
        total=len(grid.cells()),
        missing=gathered.missing,
        failed=failed,
        note=NOTE,
        split=_split(runs),
        fewest=statistics.FEWEST_SEEDS,
        sections=[_section(gathered, summary, columns, dataset) for dataset in grid.datasets],
        made=_made(gathered),
        cells=_cells(gathered),
    )


def _split(runs: Sequence[RunResult]) -> str:
    """How the data were split, in words where it is the default."""
    words: dict[str, None] = {}
    for run in runs:
        own = run.config.get("eval_args") or RANKING_ARGS
        leave_one_out = (own["split"], own["order"]) == (RANKING_ARGS["split"], RANKING_ARGS["order"])
        text = "last interaction for test, last but one for validation, in time order"
        text = text if leave_one_out else f"split {own['split']}, order {own['order']}"
        words["pre-split files" if run.config.get("benchmark_filename") else text] = None
    return "; ".join(words)


def _section(gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], dataset: str) -> dict[str, Any]:
    """What the page holds on one data set; `size` is None where no cell has a result."""
    runs = gathered.runs_of(dataset)
    if not runs:
        return {"name": dataset, "size": None}
    costs = {model: own["students"] for (where, model), own in gathered.costs.items() if where == dataset}
    return {
        "name": dataset,
        "size": runs[0].dataset,
        "headline": _rows(headline_table(summary, dataset)),
        "tests": _rows(paired_table(summary, dataset)),
        "users": _rows(users_table(gathered, dataset)),
        "hard": _rows(groups_table(gathered, dataset, columns)),
        "cost": _rows(cost_table(gathered, dataset)),
        # How far two timings of the same plain student differ.
        "noise": [f"{model} {own[AGAIN]['ratio']:.2f}" for model, own in costs.items() if AGAIN in own],
        "pictures": pictures(gathered, summary, columns, dataset),
    }


def _made(gathered: Gathered) -> dict[str, list[str]]:
    """Commits, devices and versions that made the results, each different one named."""
    runs, costs = gathered.runs.values(), gathered.costs.values()
    versions = {f"{name} {number}" for run in runs for name, number in run.versions.items()}
    return {
        "commit": sorted({str(run.commit) for run in runs}),
        "device": sorted({f"{run.device}, {run.threads} threads" for run in runs}),
        "serving measured on": sorted({f"{cost['device']}, {cost['threads']} threads" for cost in costs}),
        "versions": sorted(version for version in versions if not version.endswith("not installed")),
    }


def _cells(gathered: Gathered) -> list[dict[str, str]]:
    """Each cell with its folder, where result.json holds its whole configuration."""
    return [
        {
            "dataset": cell.dataset,
            "model": cell.model,
            "": kd_name(cell.kd),
            "seed": str(cell.seed),
            "epochs": str(run.student.epochs),
            "training s": f"{run.student.train_seconds:,.0f}",
            "folder": str(cell.folder(gathered.folder).relative_to(gathered.folder)),
        }
        for cell, run in gathered.runs.items()
    ]


def _rows(table: pd.DataFrame) -> list[dict[str, str]]:
    return [{str(name): str(value) for name, value in row.items()} for row in table.fillna("–").to_dict("records")]
