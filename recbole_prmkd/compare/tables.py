"""The tables of a comparison as text: for table.md and table.tex, and for the page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_prmkd.compare.gather import PARTS, TEACHER, Gathered, serving
from recbole_prmkd.compare.grid import BASELINE
from recbole_prmkd.compare.statistics import falls
from recbole_prmkd.compare.user_gains import interval, user_gains
from recbole_prmkd.results.groups import WORDS
from recbole_prmkd.results.names import for_markdown, printable
from recbole_prmkd.results.schema import GroupResult, StudentResult, TeacherResult

MARKDOWN, LATEX = "table.md", "table.tex"
NONE = "–"
NOTE = (
    "Mean ± standard deviation over seeds, gain over the student alone. * better, † worse than the student alone: "
    "paired t-test over seeds, p < .05 after Holm's correction over all comparisons of the data set. Test examples, "
    "all items ranked; unseen: the user's earlier items out of the ranking. Without the word they are in it for "
    "sequential students and teachers, as in RecBole, and out of it for other students: compare those with teachers on "
    "unseen."
)
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "_%&#${}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "–": "--"}
    | {"±": r"$\pm$", "†": r"$^\dagger$", "*": "$^*$", "<": "$<$", ">": "$>$"}
)


def headline(gathered: Gathered) -> list[str]:
    """Columns of the tables: NDCG and Recall of the test examples in both rankings, at 10, or else the first cut-off.

    Where results have neither, their first two metrics that are better the larger they are, or else the first two.
    """
    there = sorted(gathered.metrics, key=lambda name: (not name.endswith("@10"), int(name.partition("@")[2] or 0)))
    found = [next((name for name in there if name.startswith(base)), "") for base in ("ndcg@", "recall@")]
    rising = [name for name in gathered.metrics if not falls(name)]
    metrics = [name for name in found if name] or (rising or gathered.metrics)[:2]
    return [f"{part} {metric}" for part in ("test", "test unseen") for metric in metrics]


def write_tables(summary: pd.DataFrame, folder: Path) -> None:
    """table.md and table.tex, one table per data set."""
    datasets = map(str, summary["dataset"].unique() if len(summary) else [])
    tables = {dataset: headline_table(summary, dataset) for dataset in datasets}
    markdown = [f"**{for_markdown(dataset)}**\n\n{_markdown(table)}" for dataset, table in tables.items()]
    latex = [_latex(dataset, table) for dataset, table in tables.items()]
    (folder / MARKDOWN).write_text("\n\n".join([*markdown, NOTE]) + "\n", encoding="utf-8")
    (folder / LATEX).write_text("\n".join([r"% needs \usepackage{booktabs}", *latex]), encoding="utf-8")


def label(metric: str) -> str:
    """`test unseen ndcg@10` as a heading: NDCG@10 unseen."""
    *parts, name = metric.split(" ")
    base, at, cutoff = name.partition("@")
    name = base.upper() if base in ("ndcg", "mrr") else base.capitalize()
    return f"{name}{at}{cutoff}" + (" unseen" if "unseen" in parts else "")


def kd_name(kd: str) -> str:
    """A row's name: what `kd` is."""
    return {BASELINE: "alone", TEACHER: "teacher"}.get(kd, kd)


def number(value: float | None, form: str = ".4f") -> str:
    """0.0561 as .0561; a dash where there is none."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{value:{form}}"
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


def headline_table(summary: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """One data set's rows (student or teacher, KD method, seeds) as text, a column per metric."""
    rows = []
    for (model, kd), group in summary[summary["dataset"] == dataset].groupby(["model", "kd"], sort=False):
        lines = group.to_dict("records")
        texts = {label(line["metric"]): cell_text(line) for line in lines}
        seeds, replaced = str(lines[0]["seeds"]), lines[0].get("replaced", 0)
        name = kd_name(str(kd)) + (f" (guard kept another in {replaced} of {seeds})" if replaced else "")
        rows.append({"model": model, "": name, "seeds": seeds, **texts})
    return pd.DataFrame(rows)


def paired_table(summary: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Every comparison with the student alone: gain, p, corrected p, effect size, or why there is none."""
    own = summary[(summary["dataset"] == dataset) & (summary["paired_seeds"] > 0)]
    return pd.DataFrame(
        {
            "model": own["model"],
            "": own["kd"].map(kd_name),
            "metric": own["metric"].map(label),
            "seeds": own["paired_seeds"].map(str),
            "gain": own["gain"].map("{:+.4f}".format),
            "p": own["p"].map(_p),
            "p, Holm": own["p_holm"].map(_p) + own["mark"],
            "d_z": [NONE if math.isnan(effect) else f"{effect:.2f}" for effect in own["effect"]],
            "no test because": own["reason"],
        }
    )


def users_table(gathered: Gathered, dataset: str) -> pd.DataFrame:
    """Mean gain in NDCG@10 over test users with its 95 % interval, in both rankings."""
    rows = []
    for model in gathered.grid.models:
        for kd in gathered.grid.kds:
            texts: dict[str, str] = {}
            for heading, rank in (("gain in NDCG@10", "rank"), ("gain in NDCG@10 unseen", "rank_unseen")):
                gains = None if kd == BASELINE else user_gains(gathered, dataset, model, kd, rank)
                if gains is not None:
                    low, high = interval(gains)
                    texts |= {heading: f"{gains.mean():+.4f} [{low:+.4f}, {high:+.4f}]", "users": f"{len(gains):,}"}
            if texts:
                rows.append({"model": model, "": kd_name(kd), **texts})
    return pd.DataFrame(rows)


def groups_table(gathered: Gathered, dataset: str, columns: Sequence[str]) -> pd.DataFrame:
    """Mean ± deviation over seeds for cold items and for users with short histories; teachers are there once.

    columns: metrics as `headline` gives them.
    """
    entries: dict[tuple[str, str], list[StudentResult | TeacherResult]] = {}
    for cell, run in gathered.runs.items():
        if cell.dataset == dataset:
            entries.setdefault((cell.model, cell.kd), []).append(run.student)
            for name, teacher in run.teachers.items():
                entries.setdefault((name, TEACHER), [teacher])
    rows = []
    for name, words in WORDS.items():
        for (model, kd), measured in sorted(entries.items(), key=lambda entry: entry[0][1] == TEACHER):
            groups = [entry.groups[name] for entry in measured if name in entry.groups]
            if groups:
                texts = {label(column): _over_seeds(groups, column) for column in columns}
                examples = f"{groups[0].examples:,}"
                rows.append({"group": words, "examples": examples, "model": model, "": kd_name(kd), **texts})
    return pd.DataFrame(rows)


def _over_seeds(groups: Sequence[GroupResult], column: str) -> str:
    """Mean ± deviation of a column such as `test unseen ndcg@10`."""
    part, metric = column.rsplit(" ", 1)
    values = pd.Series([getattr(group, PARTS[part]).get(metric, math.nan) for group in groups])
    deviation = float(values.std(skipna=False))
    return number(float(values.mean())) + ("" if math.isnan(deviation) else f" ± {number(deviation)}")


def cost_table(gathered: Gathered, dataset: str) -> pd.DataFrame:
    """Parameters, seconds, memory and serving time of students (mean over seeds) and teachers."""
    cells = gathered.cells[gathered.cells["dataset"] == dataset]
    rows = []
    for (model, kd), group in cells.groupby(["model", "kd"], sort=False):
        measured = serving(gathered.costs, dataset, str(model), str(kd))
        times = [measured[key] for key in ("ms", "low", "high") if key in measured]
        texts = [f"{value:,.{0 if value >= 100 else 1}f}" for value in times]
        rows.append(
            {
                "model": model,
                "": kd_name(str(kd)),
                "parameters": f"{group['parameters'].mean():,.0f}",
                "training s": _rounded(group["train_seconds"].mean()),
                "peak MB": _rounded(group["peak_memory_mb"].mean()),
                "ms per 1,000 users": "{} ({} to {})".format(*texts) if texts else NONE,
                "ratio to alone": f"{measured['ratio']:.2f}" if measured.get("ratio") else NONE,
                "size MB": f"{measured['bytes'] / 2**20:.2f}" if "bytes" in measured else NONE,
            }
        )
    return pd.DataFrame(rows)


def _p(value: float) -> str:
    return "<.0001" if value < 1e-4 else number(value)


def _rounded(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:,.{0 if value >= 10 else 1}f}"


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), *table.to_numpy().tolist()]
    head, *rows = ["| " + " | ".join(map(for_markdown, line)) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(table.columns), *rows])


def _latex(dataset: str, table: pd.DataFrame) -> str:
    def escaped(text: str) -> str:
        return printable(text).translate(_LATEX)

    own = table.map(escaped).rename(columns=escaped)
    return own.to_latex(index=False, caption=escaped(f"{dataset}. {NOTE}"))
