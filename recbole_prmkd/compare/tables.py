"""The comparison in numbers: results.csv (every cell); table.md and table.tex (mean ± deviation, one a data set)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_prmkd.compare.gather import TEACHER, Gathered, serving
from recbole_prmkd.compare.grid import BASELINE
from recbole_prmkd.compare.statistics import falls

RESULTS, MARKDOWN, LATEX = "results.csv", "table.md", "table.tex"
HEADLINE = ("ndcg", "recall")
NONE = "–"
NAMES = {"ndcg": "NDCG", "mrr": "MRR"}
_LATEX = {
    **{sign: f"\\{sign}" for sign in "_%&#${}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "–": "--"},
    **{"±": r"$\pm$", "†": r"$^\dagger$", "*": "$^*$", "<": "$<$", ">": "$>$"},
}


def headline(gathered: Gathered) -> list[str]:
    """Columns of the tables: NDCG and Recall of the test rows in both rankings, at 10, or else the first cut-off.

    Where results have neither, their first two metrics that are better the larger they are, or else the first two.
    """
    there = sorted(gathered.metrics, key=lambda name: (not name.endswith("@10"), int(name.partition("@")[2] or 0)))
    found = [next((name for name in there if name.startswith(f"{base}@")), "") for base in HEADLINE]
    rising = [name for name in gathered.metrics if not falls(name)]
    metrics = [name for name in found if name] or (rising or gathered.metrics)[:2]
    return [f"{part} {metric}" for part in ("test", "test unseen") for metric in metrics]


def write_results(gathered: Gathered, folder: Path) -> None:
    """results.csv: one line per cell and teacher, all metrics of validation and test."""
    gathered.cells.to_csv(folder / RESULTS, index=False)


def write_tables(summary: pd.DataFrame, columns: Sequence[str], folder: Path) -> None:
    """table.md and table.tex."""
    (folder / MARKDOWN).write_text("\n\n".join(_markdown(summary, columns)) + "\n", encoding="utf-8")
    (folder / LATEX).write_text("\n\n".join(_latex(summary, columns)) + "\n", encoding="utf-8")


def label(metric: str) -> str:
    """`test unseen ndcg@10` as a heading: NDCG@10 unseen."""
    *parts, name = metric.split(" ")
    base, at, cutoff = name.partition("@")
    return f"{NAMES.get(base, base.capitalize())}{at}{cutoff}" + (" unseen" if "unseen" in parts else "")


def way(kd: str) -> str:
    """A row's name: what `kd` is."""
    return {BASELINE: "alone", TEACHER: "teacher"}.get(kd, kd)


def number(value: float, positions: int = 4) -> str:
    """0.0561 as .0561; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{value:.{positions}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def cell_text(row: Mapping[Any, Any]) -> str:
    """Mean ± deviation, the gain over the student alone, and the mark that it has earned: `.0561 ± .0012 (+9.1 %)*`."""
    text = number(row["mean"])
    if not math.isnan(row["deviation"]):
        text += f" ± {number(row['deviation'])}"
    if not math.isnan(row["percent"]):
        few = "" if row["whole"] else f" over {row['paired_seeds']} shared seeds"
        text += f" ({row['percent']:+.1f} %{few})"
    return text + str(row["mark"])


def headline_table(summary: pd.DataFrame, dataset: str, columns: Sequence[str]) -> pd.DataFrame:
    """One data set's rows (student or teacher, way, seeds) as text, a column per metric."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in summary[summary["dataset"] == dataset].to_dict("records"):
        first = {"model": row["model"], "": way(row["kd"]), "seeds": str(row["seeds"])}
        line = lines.setdefault((row["model"], row["kd"]), first)
        if row["metric"] in columns:
            line[label(row["metric"])] = cell_text(row)
    return pd.DataFrame(list(lines.values()))


def paired_table(summary: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Every comparison with the student alone: gain, p, corrected p, effect size, or why there is none."""
    own = summary[(summary["dataset"] == dataset) & (summary["paired_seeds"] > 0)]
    return pd.DataFrame(
        {
            "model": own["model"],
            "": own["kd"].map(way),
            "metric": own["metric"].map(label),
            "seeds": own["paired_seeds"].astype(int).astype(str),
            "gain": [f"{gain:+.4f}" for gain in own["gain"]],
            "p": [_p(p) for p in own["p"]],
            "p, Holm": [_p(p) + str(mark) for p, mark in zip(own["p_holm"], own["mark"], strict=True)],
            "d_z": [NONE if math.isnan(effect) else f"{effect:.2f}" for effect in own["effect"]],
            "no test because": own["reason"],
        }
    )


def cost_table(gathered: Gathered, dataset: str) -> pd.DataFrame:
    """Parameters, seconds, memory and serving time of students (mean over seeds) and teachers."""
    cells = gathered.cells[gathered.cells["dataset"] == dataset]
    rows = []
    for (model, kd), group in cells.groupby(["model", "kd"], sort=False):
        measured = serving(gathered.costs, dataset, str(model), str(kd))
        rows.append(
            {
                "model": model,
                "": way(str(kd)),
                "parameters": f"{group['parameters'].mean():,.0f}",
                "training s": _rounded(group["train_seconds"].mean()),
                "peak MB": _rounded(group["peak_memory_mb"].mean()),
                "ms per 1,000 users": _milliseconds(measured),
                "ratio to alone": f"{measured['ratio']:.2f}" if measured.get("ratio") else NONE,
                "size MB": f"{measured['bytes'] / 2**20:.2f}" if "bytes" in measured else NONE,
            }
        )
    return pd.DataFrame(rows)


def _milliseconds(measured: Mapping[str, float]) -> str:
    if "ms" not in measured:
        return NONE
    times = (measured[key] for key in ("ms", "low", "high"))
    median, low, high = (f"{value:,.{0 if value >= 100 else 1}f}" for value in times)
    return f"{median} ({low} to {high})"


def _p(value: float) -> str:
    if value is None or math.isnan(value):
        return NONE
    return "<.0001" if value < 1e-4 else number(value)


def _rounded(value: float) -> str:
    if value is None or math.isnan(value):
        return NONE
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _markdown(summary: pd.DataFrame, columns: Sequence[str]) -> Iterator[str]:
    for dataset, table in _tables(summary, columns):
        head = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
        lines = ["| " + " | ".join(row) + " |" for row in table.itertuples(index=False, name=None)]
        yield "\n".join([f"**{dataset}**", "", *head, *lines])
    yield NOTE


def _latex(summary: pd.DataFrame, columns: Sequence[str]) -> Iterator[str]:
    for dataset, table in _tables(summary, columns):
        rows = [list(map(str, table.columns)), *table.to_numpy().tolist()]
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
        yield "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_escaped(dataset)}. {_escaped(NOTE)}}}",
                r"\begin{tabular}{" + "l" * len(table.columns) + "}",
                r"\hline",
                lines[0],
                r"\hline",
                *lines[1:],
                r"\hline",
                r"\end{tabular}",
                r"\end{table}",
            ]
        )


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _tables(summary: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    for dataset in summary["dataset"].unique() if len(summary) else []:
        yield dataset, headline_table(summary, dataset, columns)


NOTE = (
    "Mean ± standard deviation over seeds, gain over the student alone. * better, † worse than the student alone: "
    "paired t-test over seeds, p < .05 after Holm's correction over all comparisons of the data set. Test rows, all "
    "items ranked; unseen: the user's earlier items out of the ranking. Without the word they are in it for sequential "
    "students and teachers, as in RecBole, and out of it for other students: compare those with teachers on unseen."
)
