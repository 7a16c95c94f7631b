"""report.html, one file that needs no network and no script, with the tables beside it."""

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
from recbole_prmkd.compare.grid import BASELINE, Grid
from recbole_prmkd.compare.tables import (
    NOTE,
    cost_table,
    headline,
    headline_table,
    paired_table,
    way,
    write_results,
    write_tables,
)
from recbole_prmkd.recbole_host.config import RANKING_ARGS
from recbole_prmkd.results.schema import RunResult
from recbole_prmkd.tune.settings import SweepSettings

PAGE = "report.html"


def write_report(grid: Grid, folder: Path, failed: Mapping[str, str] | None = None) -> Gathered:
    """Write results.csv, table.md, table.tex and report.html from the results that are there.

    Args:
        failed: what did not end well, with its error, to be told on the page.
    """
    gathered = gather(grid, folder)
    columns = headline(gathered)
    summary = statistics.summary(gathered, columns)
    write_results(gathered, folder)
    write_tables(summary, columns, folder)
    (folder / PAGE).write_text(page(gathered, summary, columns, failed or {}), encoding="utf-8")
    return gathered


def page(gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], failed: Mapping[str, str]) -> str:
    """The page's text."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    grid, runs = gathered.grid, list(gathered.runs.values())
    return environment.get_template("page.html").render(
        title=f"{', '.join(grid.models)} on {', '.join(grid.datasets)}",
        written=f"{datetime.now():%d %B %Y, %H:%M}",
        grid=grid,
        trials=_trials(grid),
        ways=[way(kd) for kd in grid.kds],
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


def _trials(grid: Grid) -> str:
    """How many settings a sweep tried, in words; empty where there was none."""
    if not grid.tune:
        return ""
    sweep = SweepSettings.model_validate(grid.tune)
    return "all combinations as trials" if sweep.search == "grid" else f"{sweep.samples} trials"


def _split(runs: Sequence[RunResult]) -> str:
    """How the rows were split, in words where it is the usual way."""
    usual = RANKING_ARGS["split"], RANKING_ARGS["order"]
    told = []
    for run in runs:
        own = run.config.get("eval_args") or RANKING_ARGS
        if run.config.get("benchmark_filename"):
            told.append("pre-split files")
        elif (own["split"], own["order"]) == usual:
            told.append("last interaction for test, last but one for validation, in time order")
        else:
            told.append(f"split {own['split']}, order {own['order']}")
    return "; ".join(dict.fromkeys(told))


def _section(gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], dataset: str) -> dict[str, Any]:
    """What the page holds on one data set; `size` is None where no cell has a result."""
    run = next((run for cell, run in gathered.runs.items() if cell.dataset == dataset), None)
    if run is None:
        return {"name": dataset, "size": None}
    return {
        "name": dataset,
        "size": run.dataset,
        "headline": _rows(headline_table(summary, dataset, columns)),
        "tests": _rows(paired_table(summary, dataset)),
        "users": _rows(users_table(gathered, dataset)),
        "cost": _rows(cost_table(gathered, dataset)),
        "noise": _noise(gathered, dataset),
        "pictures": pictures(gathered, summary, columns, dataset),
    }


def users_table(gathered: Gathered, dataset: str) -> pd.DataFrame:
    """Mean gain in NDCG@10 over test users with its 95 % interval, in both rankings."""
    rows = []
    for model in gathered.grid.models:
        for kd in gathered.grid.kds:
            row = {"model": model, "": way(kd)}
            for heading, rank in (("gain in NDCG@10", "rank"), ("gain in NDCG@10 unseen", "rank_unseen")):
                gains = None if kd == BASELINE else statistics.user_gains(gathered, dataset, model, kd, rank)
                if gains is not None:
                    low, high = statistics.interval(gains)
                    row |= {heading: f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}]", "users": f"{len(gains):,}"}
            if len(row) > 2:
                rows.append(row)
    return pd.DataFrame(rows)


def _noise(gathered: Gathered, dataset: str) -> list[str]:
    """How far two timings of the same plain student differ."""
    return [
        f"{model} {costs['students'][AGAIN]['ratio']:.2f}"
        for (where, model), costs in gathered.costs.items()
        if where == dataset and AGAIN in costs["students"]
    ]


def _made(gathered: Gathered) -> dict[str, list[str]]:
    """What made the results: commits, devices, versions; several of one are told."""
    runs = list(gathered.runs.values())
    versions = {
        f"{name} {number}" for run in runs for name, number in run.versions.items() if number != "not installed"
    }
    return {
        "commit": sorted({str(run.commit) for run in runs}),
        "device": sorted({f"{run.device}, {run.threads} threads" for run in runs}),
        "serving measured on": sorted(
            {f"{cost['device']}, {cost['threads']} threads" for cost in gathered.costs.values()}
        ),
        "versions": sorted(versions),
    }


def _cells(gathered: Gathered) -> list[dict[str, str]]:
    """Each cell with its folder, where result.json holds its whole configuration."""
    frame = gathered.cells
    if frame.empty:
        return []
    frame = frame[frame["folder"].notna()] if "folder" in frame else frame
    chosen = frame[["dataset", "model", "kd", "seed", "epochs", "train_seconds", "folder"]].copy()
    chosen["kd"], chosen["train_seconds"] = chosen["kd"].map(way), chosen["train_seconds"].map("{:,.0f}".format)
    chosen["epochs"] = chosen["epochs"].map("{:.0f}".format)
    return _rows(chosen.rename(columns={"kd": "", "train_seconds": "training s"}))


def _rows(table: pd.DataFrame) -> list[dict[str, str]]:
    return [{str(name): str(value) for name, value in row.items()} for row in table.fillna("–").to_dict("records")]
