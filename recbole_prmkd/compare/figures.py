"""The report's figures as SVG, each with its title, units, and a description in words for those who do not see it."""

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recbole_prmkd.compare.gather import TEACHER, Gathered
from recbole_prmkd.compare.grid import BASELINE
from recbole_prmkd.compare.groups import BY, gain_by_group
from recbole_prmkd.compare.tables import label, way
from recbole_prmkd.results.schema import RunResult

# Okabe and Ito's colours, which remain apart for colour-blind readers; beside them hatches and markers differ.
COLOURS = ("#555555", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
_DASHES = ("-", "--", ":", "-.")
_FILLS = ("full", "left", "top", "right", "bottom")  # of a marker whose shape is the student's
_WIDTH = 7.2  # inches; one or two panels a row, so that a phone can show them


@dataclass(frozen=True)
class Picture:
    """A figure for the page. text: what it shows, for the `alt` attribute."""

    title: str
    text: str
    source: str  # a data: address


def pictures(
    gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], dataset: str
) -> dict[str, list[Picture]]:
    """All figures of one data set, by section."""
    return {
        "quality": list(_bars(gathered, summary, columns, dataset)),
        "learning": list(_learning_curves(gathered, dataset)),
        "teachers": list(_teacher_curves(gathered, dataset)),
        "groups": list(_groups(gathered, dataset)),
        "cost": list(_cost_against_quality(gathered, summary, columns, dataset)),
    }


def _bars(gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], dataset: str) -> Iterator[Picture]:
    """Mean and deviation of each student and way; teachers as lines across, where they rank as all students do."""
    alike = all(run.student.test != run.student.test_unseen for run in _runs(gathered, dataset, None, None))
    own = summary[summary["dataset"] == dataset]
    students = [model for model in gathered.grid.models if model in set(own["model"])]
    kds = [kd for kd in gathered.grid.kds if kd in set(own["kd"])]
    absent = {"mean": math.nan, "deviation": math.nan}
    for metric in columns:
        rows: list[dict[Any, Any]] = own[own["metric"] == metric].to_dict("records")
        by_name = {(row["model"], row["kd"]): row for row in rows}
        figure = Figure(figsize=(_WIDTH, 3.9), layout="constrained")
        axes = figure.subplots()
        for place, kd in enumerate(kds):
            bars = [by_name.get((model, kd), absent) for model in students]
            height, spread = [bar["mean"] for bar in bars], np.nan_to_num([bar["deviation"] for bar in bars])
            at = np.arange(len(students)) + (place - (len(kds) - 1) / 2) * 0.8 / len(kds)
            axes.bar(at, height, 0.8 / len(kds), yerr=spread, capsize=3, label=way(kd), **_bar_style(gathered, kd))
        teachers = [row for row in rows if row["kd"] == TEACHER and (alike or "unseen" in metric)]
        for place, row in enumerate(teachers):
            dashes, colour = _DASHES[1:][place % 3], ("black", "#999999")[place // 3 % 2]
            axes.axhline(row["mean"], lw=1, ls=dashes, color=colour, label=f"teacher {row['model']}")
        axes.set_xticks(np.arange(len(students)), students)
        _finish(axes, ylabel=label(metric), ylim=(0, None))
        _legend(figure, [axes])
        values = "; ".join(f"{row['model']} {way(row['kd'])} {row['mean']:.4f}" for row in rows)
        title = f"{label(metric)} on the test rows of {dataset}"
        yield _picture(
            figure, title, f"Bars of the mean over seeds, with standard deviation; dashed: teachers. {values}."
        )


def _learning_curves(gathered: Gathered, dataset: str) -> Iterator[Picture]:
    """Validation score over the epochs: mean over seeds, and the range of all of them."""
    models = [model for model in gathered.grid.models if _runs(gathered, dataset, model, None)]
    models = [m for m in models if any(run.student.valid_scores for run in _runs(gathered, dataset, m, None))]
    if not models:
        return
    figure, panels = _panels(len(models))
    ends = []
    for axes, model in zip(panels, models, strict=True):
        for kd in gathered.grid.kds:
            scores = [
                run.student.valid_scores for run in _runs(gathered, dataset, model, kd) if run.student.valid_scores
            ]
            if not scores:
                continue
            table = pd.DataFrame(scores).T  # [validations, seeds]; a seed that stopped early is shorter
            step = _runs(gathered, dataset, model, kd)[0].config.get("eval_step", 1)
            epochs = np.arange(1, len(table) + 1) * step
            style = _line_style(gathered, kd)
            mean = table.mean(axis=1, skipna=False)  # ends with the first seed that does
            axes.plot(epochs, mean, label=way(kd), markevery=max(1, len(table) // 8), ms=4, **style)
            axes.fill_between(epochs, table.min(axis=1), table.max(axis=1), color=style["color"], alpha=0.15, lw=0)
            ends.append(f"{model} {way(kd)} best {table.max().mean():.4f}")
        metric = _runs(gathered, dataset, model, None)[0].config["valid_metric"]
        _finish(axes, title=model, xlabel="epoch", ylabel=f"validation {metric}")
    _legend(figure, panels)
    words = (
        f"Validation score after each epoch, mean (until the first seed stops) and range over seeds. {'; '.join(ends)}."
    )
    yield _picture(figure, f"Learning curves on {dataset}", words)


def _teacher_curves(gathered: Gathered, dataset: str) -> Iterator[Picture]:
    """Weights of the teachers and consistency over the epochs: one figure for each way, one column for each student."""
    for kd in gathered.grid.kds:
        runs = {model: _runs(gathered, dataset, model, kd) for model in gathered.grid.models}
        histories = {model: of[0].distillation for model, of in runs.items() if of and of[0].distillation}
        histories = {model: of for model, of in histories.items() if any(key.startswith("weight_") for key in of[0])}
        if not histories:
            continue
        figure, panels = _panels(2 * len(histories))
        last = []
        for column, (model, history) in enumerate(histories.items()):
            table = pd.DataFrame(history).set_index("epoch")
            weights = [str(name) for name in table if str(name).startswith("weight_")]
            shares = {"inconsistent": "marks that disagree", "agreement": "agreement of the teachers"}
            _curves(panels[2 * column], table, {name: name.removeprefix("weight_") for name in weights})
            # Colours that no teacher of the same legend has.
            told = {name: words for name, words in shares.items() if name in table}
            _curves(panels[2 * column + 1], table, told, 1 + len(weights))
            panels[2 * column].set(title=model, ylabel="mean weight of a teacher")
            panels[2 * column + 1].set(title=model, ylabel="share of marks")
            last.append(
                model + " " + ", ".join(f"{n.removeprefix('weight_')} {table[n].iloc[-1]:.2f}" for n in weights)
            )
        _legend(figure, panels)
        words = f"Teachers' weights and consistency over the epochs, first seed. Weights at the end: {'; '.join(last)}."
        yield _picture(figure, f"Teachers in {kd} on {dataset}", words)


def _curves(axes: Axes, table: pd.DataFrame, labels: dict[str, str], first: int = 1) -> None:
    for place, (name, words) in enumerate(labels.items(), first):
        colour, dashes = COLOURS[place % 8], _DASHES[place % 4]
        axes.plot(table.index + 1, table[name], label=words, color=colour, ls=dashes, marker=".")
    _finish(axes, xlabel="epoch", ylim=(-0.03, 1.05))


def _groups(gathered: Gathered, dataset: str) -> Iterator[Picture]:
    """Gain in NDCG@10 by history length and by popularity."""
    for by, words in BY.items():
        frame = gain_by_group(gathered, by)
        frame = frame[(frame["dataset"] == dataset) & (frame["kd"] != BASELINE)] if len(frame) else frame
        if frame.empty:
            continue
        models = list(frame["model"].unique())
        figure, panels = _panels(len(models))
        told = []
        for axes, model in zip(panels, models, strict=True):
            own = frame[frame["model"] == model]
            groups, kds = list(own["group"].unique()), list(own["kd"].unique())
            for place, kd in enumerate(kds):
                table = own[own["kd"] == kd].set_index("group").reindex(groups)
                at = np.arange(len(groups)) + (place - (len(kds) - 1) / 2) * 0.8 / len(kds)
                style = _bar_style(gathered, kd)
                axes.bar(
                    at, table["gain"], 0.8 / len(kds), yerr=table["deviation"].fillna(0), capsize=2, label=kd, **style
                )
                told.append(f"{model} {kd} " + ", ".join(f"{g}: {v:+.4f}" for g, v in table["gain"].items()))
            axes.axhline(0, color="black", lw=0.8)
            axes.set_xticks(np.arange(len(groups)), groups, rotation=20 if max(map(len, groups)) > 7 else 0)
            _finish(axes, title=model, xlabel=words, ylabel="gain in NDCG@10 unseen")
        _legend(figure, panels)
        title = f"Gain by {'history length' if by == 'history' else 'item popularity'} on {dataset}"
        yield _picture(figure, title, f"Mean gain over the student alone in groups of test rows. {'; '.join(told)}.")


def _cost_against_quality(
    gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], dataset: str
) -> Iterator[Picture]:
    """Serving time against quality, students and teachers on one plot."""
    metric = next((name for name in columns if name.startswith("test unseen")), columns[0])
    quality = summary[(summary["dataset"] == dataset) & (summary["metric"] == metric)].set_index(["model", "kd"])[
        "mean"
    ]
    points = list(_points(gathered, dataset, quality))
    if not points:
        return
    figure = Figure(figsize=(_WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    students = list(gathered.grid.models)
    for model, kd, milliseconds, mean in points:
        if kd == TEACHER:
            axes.plot(milliseconds, mean, "*", ms=13, color="black")
            axes.annotate(model, (milliseconds, mean), xytext=(6, 4), textcoords="offset points", fontsize=9)
            continue
        axes.plot(milliseconds, mean, _MARKERS[students.index(model) % 8], **_filling(gathered, kd))
    for place, model in enumerate(students):
        axes.plot([], [], _MARKERS[place % 8], color="white", mec="black", label=model)
    for kd in gathered.grid.kds:
        axes.plot([], [], "s", label=way(kd), **_filling(gathered, kd))
    axes.plot([], [], "*", color="black", ms=10, label="teacher")
    axes.margins(0.15, 0.1)  # room for the names
    _finish(axes, xscale="log", xlabel="milliseconds per 1,000 users ranked (log scale)", ylabel=label(metric))
    _legend(figure, [axes])
    told = "; ".join(f"{model} {way(kd)} {ms:,.0f} ms, {mean:.4f}" for model, kd, ms, mean in points)
    yield _picture(figure, f"Serving time against quality on {dataset}", f"Up and to the left is better. {told}.")


def _points(gathered: Gathered, dataset: str, quality: pd.Series) -> Iterator[tuple[str, str, float, float]]:
    """Model, way, milliseconds per 1,000 users and quality of all that was measured."""
    teachers: set[str] = set()
    for (where, model), costs in gathered.costs.items():
        if where != dataset:
            continue
        for kd, entry in costs["students"].items():
            if "ms" in entry and (model, kd) in quality.index:
                yield model, kd, entry["ms"], quality[(model, kd)]
        for name, entry in costs["teachers"].items():
            if "ms" in entry and name not in teachers and (name, TEACHER) in quality.index:
                teachers.add(name)
                yield name, TEACHER, entry["ms"], quality[(name, TEACHER)]


def _runs(gathered: Gathered, dataset: str, model: str | None, kd: str | None) -> list[RunResult]:
    """Results of a student or of all, of one way or of all."""
    return [
        run
        for cell, run in gathered.runs.items()
        if cell.dataset == dataset and model in (None, cell.model) and kd in (None, cell.kd)
    ]


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    columns = min(2, number)
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(_WIDTH, 2.9 * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[number:]:
        spare.set_visible(False)
    return figure, panels[:number]


def _place(gathered: Gathered, kd: str) -> int:
    """A way's place among colours and hatches; the student alone is the first."""
    return [BASELINE, *(name for name in gathered.grid.kds if name != BASELINE)].index(kd)


def _bar_style(gathered: Gathered, kd: str) -> dict[str, Any]:
    place = _place(gathered, kd)
    hatch = _HATCHES[(place + place // 8) % 8]  # another one when colours come again
    return {"color": COLOURS[place % 8], "hatch": hatch, "edgecolor": "white", "ecolor": "black"}


def _line_style(gathered: Gathered, kd: str) -> dict[str, Any]:
    place = _place(gathered, kd)
    turn = place + place // 8  # another marker and dash when colours come again
    return {"color": COLOURS[place % 8], "marker": _MARKERS[turn % 8], "ls": _DASHES[turn % 4]}


def _filling(gathered: Gathered, kd: str) -> dict[str, Any]:
    place = _place(gathered, kd)
    style = {"color": COLOURS[place % 8], "fillstyle": _FILLS[place % 5], "markerfacecoloralt": "white"}
    return {**style, "ms": 8, "mec": "black", "mew": 0.5}


def _finish(axes: Axes, **texts: Any) -> None:
    """Labels, and a quiet grid."""
    axes.set(**texts)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    if texts.get("xlabel") == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend below all panels."""
    entries = {words: line for axes in panels for line, words in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)


def _picture(figure: Figure, title: str, text: str) -> Picture:
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": title, "hatch.linewidth": 0.6}):
        figure.savefig(stream, format="svg", metadata={"Title": title, "Description": text, "Date": None})
    return Picture(
        title, f"{title}. {text}", "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
    )
