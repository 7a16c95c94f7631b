"""The report's figures as SVG, each with its title, units, and a description in words for those who do not see it."""

import base64
import io
import itertools
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
from recbole_prmkd.compare.tables import kd_name, label
from recbole_prmkd.compare.user_gains import BY, gain_by_group
from recbole_prmkd.results.names import for_figure, printable

# Okabe and Ito's colours, which remain apart for colour-blind readers. The other lists have other lengths, so that two
# KD methods whose colour is the same differ in them.
_COLOURS = ("#555555", "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", ":", "-.", (0, (1, 3)))
_STYLES: dict[str, Sequence[Any]] = {
    "color": _COLOURS,
    "hatch": ("", "//", "..", "xx", "\\\\", "++", "oo"),
    "marker": _MARKERS,
    "ls": _DASHES,
    "fillstyle": ("full", "left", "top", "right", "bottom"),  # of a marker whose shape is the student's
}
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
        "quality": list(quality(gathered, summary, columns, dataset)),
        "learning": list(learning_curves(gathered, dataset)),
        "teachers": list(teacher_curves(gathered, dataset)),
        "groups": list(groups(gathered, dataset)),
        "cost": list(cost_against_quality(gathered, summary, columns, dataset)),
    }


def style(gathered: Gathered, kd: str, *names: str) -> dict[str, Any]:
    """Matplotlib's settings of these names for a KD method; the student alone has the first of each list."""
    place = [BASELINE, *(name for name in gathered.grid.kds if name != BASELINE)].index(kd)
    return {name: _STYLES[name][place % len(_STYLES[name])] for name in names}


def quality(gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], dataset: str) -> Iterator[Picture]:
    """Mean and deviation of students by KD method; teachers as lines across, where they rank as all students do."""
    alike = all(run.student.test != run.student.test_unseen for run in gathered.runs_of(dataset))
    own = summary[summary["dataset"] == dataset]
    students = [model for model in gathered.grid.models if model in set(own["model"])]
    kds = [kd for kd in gathered.grid.kds if kd in set(own["kd"])]
    for metric in columns:
        lines = own[own["metric"] == metric]
        figure, (axes,) = _panels(1, 3.9)
        means, deviations = (lines.pivot(index="model", columns="kd", values=name) for name in ("mean", "deviation"))
        _bars(axes, gathered, means.loc[students, kds], deviations.loc[students, kds])
        records = lines.to_dict("records")
        teachers = [line for line in records if line["kd"] == TEACHER and (alike or "unseen" in metric)]
        for place, line in enumerate(teachers):
            dashes, colour = _DASHES[1:4][place % 3], ("black", "#999999")[place // 3 % 2]
            axes.axhline(line["mean"], lw=1, ls=dashes, color=colour, label=f"teacher {line['model']}")
        _finish(axes, ylabel=label(metric), ylim=(0, None))
        values = "; ".join(f"{line['model']} {kd_name(line['kd'])} {line['mean']:.4f}" for line in records)
        words = f"Bars of the mean over seeds, with standard deviation; dashed: teachers. {values}."
        yield _picture(figure, f"{label(metric)} on the test examples of {dataset}", words)


def learning_curves(gathered: Gathered, dataset: str) -> Iterator[Picture]:
    """Validation score over the epochs: mean over seeds, and the range of all of them."""
    trained = {
        model: [run for run in gathered.runs_of(dataset, model) if run.student.valid_scores]
        for model in gathered.grid.models
    }
    trained = {model: runs for model, runs in trained.items() if runs}
    if not trained:
        return
    figure, panels = _panels(len(trained))
    ends = []
    for axes, (model, runs) in zip(panels, trained.items(), strict=True):
        for kd in gathered.grid.kds:
            scores = [run.student.valid_scores for run in runs if run.config["kd"] == kd]
            if not scores:
                continue
            table = pd.DataFrame(scores).T  # [validations, seeds]; a seed that stopped early is shorter
            epochs = (table.index + 1) * runs[0].config.get("eval_step", 1)
            look = style(gathered, kd, "color", "marker", "ls")
            mean = table.mean(axis=1, skipna=False)  # ends with the first seed that does
            axes.plot(epochs, mean, label=kd_name(kd), markevery=max(1, len(table) // 8), ms=4, **look)
            axes.fill_between(epochs, table.min(axis=1), table.max(axis=1), color=look["color"], alpha=0.15, lw=0)
            ends.append(f"{model} {kd_name(kd)} best {table.max().mean():.4f}")
        _finish(axes, title=model, xlabel="epoch", ylabel=f"validation {runs[0].config['valid_metric']}")
    words = "Validation score after each epoch, mean (until the first seed stops) and range over seeds."
    yield _picture(figure, f"Learning curves on {dataset}", f"{words} {'; '.join(ends)}.")


def teacher_curves(gathered: Gathered, dataset: str) -> Iterator[Picture]:
    """Weights of the teachers and consistency over the epochs: a figure for each KD method, a line for each student."""
    for kd in gathered.grid.kds:
        runs = {model: gathered.runs_of(dataset, model, kd)[:1] for model in gathered.grid.models}
        histories = {model: run.distillation for model, own in runs.items() for run in own if run.distillation}
        histories = {model: of for model, of in histories.items() if any(name.startswith("weight_") for name in of[0])}
        if not histories:
            continue
        figure, panels = _panels(2 * len(histories))
        last = []
        for (model, history), left, right in zip(histories.items(), panels[::2], panels[1::2], strict=True):
            weights = {name: name.removeprefix("weight_") for name in history[0] if name.startswith("weight_")}
            shares = {"inconsistent": "marks that disagree", "agreement": "agreement of the teachers"}
            _lines(left, history, weights, 1)
            _lines(right, history, {name: shares[name] for name in shares if name in history[0]}, 1 + len(weights))
            left.set(title=model, ylabel="mean weight of a teacher")
            right.set(title=model, ylabel="share of marks")
            last.append(f"{model} " + ", ".join(f"{weights[name]} {history[-1][name]:.2f}" for name in weights))
        words = f"Teachers' weights and consistency over the epochs, first seed. Weights at the end: {'; '.join(last)}."
        yield _picture(figure, f"Teachers in {kd} on {dataset}", words)


def groups(gathered: Gathered, dataset: str) -> Iterator[Picture]:
    """Gain in NDCG@10 by history length and by popularity."""
    for by, words in BY.items():
        tables = {model: gain_by_group(gathered, dataset, model, by) for model in gathered.grid.models}
        tables = {model: both for model, both in tables.items() if len(both[0])}
        if not tables:
            continue
        figure, panels = _panels(len(tables))
        texts = []
        for axes, (model, (gains, deviations)) in zip(panels, tables.items(), strict=True):
            _bars(axes, gathered, gains, deviations)
            axes.axhline(0, color="black", lw=0.8)
            axes.tick_params(axis="x", rotation=20 if gains.index.str.len().max() > 7 else 0)
            _finish(axes, title=model, xlabel=words, ylabel="gain in NDCG@10 unseen")
            for kd, column in gains.items():
                texts.append(f"{model} {kd} " + ", ".join(f"{group}: {gain:+.4f}" for group, gain in column.items()))
        title = f"Gain by {'history length' if by == 'history' else 'item popularity'} on {dataset}"
        words = f"Mean gain over the student alone in groups of test examples. {'; '.join(texts)}."
        yield _picture(figure, title, words)


def cost_against_quality(
    gathered: Gathered, summary: pd.DataFrame, columns: Sequence[str], dataset: str
) -> Iterator[Picture]:
    """Serving time against quality, students and teachers in one figure."""
    metric = next((name for name in columns if name.startswith("test unseen")), columns[0])
    lines = summary[(summary["dataset"] == dataset) & (summary["metric"] == metric)]
    times = gathered.cells[["dataset", "model", "kd", "ms_per_1000_users"]].dropna().drop_duplicates()
    points: list[dict[Any, Any]] = lines.merge(times, on=["dataset", "model", "kd"]).to_dict("records")
    if not points:
        return
    figure, (axes,) = _panels(1, 4.6)
    shapes = dict(zip(gathered.grid.models, itertools.cycle(_MARKERS), strict=False))
    marks: dict[str, Any] = {"markerfacecoloralt": "white", "ms": 8, "mec": "black", "mew": 0.5}
    marks_of = {kd: marks | style(gathered, kd, "color", "fillstyle") for kd in gathered.grid.kds}
    texts = []
    for point in points:
        model, kd, at = point["model"], point["kd"], (point["ms_per_1000_users"], point["mean"])
        texts.append(f"{model} {kd_name(kd)} {at[0]:,.0f} ms, {at[1]:.4f}")
        if kd == TEACHER:
            axes.plot(*at, "*", ms=13, color="black")
            axes.annotate(model, at, xytext=(6, 4), textcoords="offset points", fontsize=9)
        else:
            axes.plot(*at, shapes[model], **marks_of[kd])
    for model, shape in shapes.items():
        axes.plot([], [], shape, color="white", mec="black", label=model)
    for kd in gathered.grid.kds:
        axes.plot([], [], "s", label=kd_name(kd), **marks_of[kd])
    axes.plot([], [], "*", color="black", ms=10, label="teacher")
    axes.margins(0.15, 0.1)  # room for the names
    _finish(axes, xscale="log", xlabel="milliseconds per 1,000 users ranked (log scale)", ylabel=label(metric))
    words = f"Up and to the left is better. {'; '.join(texts)}."
    yield _picture(figure, f"Serving time against quality on {dataset}", words)


def _bars(axes: Axes, gathered: Gathered, means: pd.DataFrame, deviations: pd.DataFrame) -> None:
    """A group of bars for each row of the tables, in it a bar for each column, a KD method."""
    width = 0.8 / len(means.columns)
    for place, kd in enumerate(means.columns):
        at = np.arange(len(means)) + (place - (len(means.columns) - 1) / 2) * width
        look, spread = style(gathered, kd, "color", "hatch"), deviations[kd].fillna(0)
        axes.bar(at, means[kd], width, yerr=spread, capsize=2, label=kd_name(kd), edgecolor="white", **look)
    axes.set_xticks(np.arange(len(means)), means.index)


def _lines(axes: Axes, history: Sequence[dict[str, float]], labels: dict[str, str], first: int) -> None:
    """A line for each number of the epochs; `first` is the place of its colour."""
    table = pd.DataFrame(history)
    for place, (name, words) in enumerate(labels.items(), first):
        look: dict[str, Any] = {"color": _COLOURS[place % 8], "ls": _DASHES[place % 5], "marker": "."}
        axes.plot(table["epoch"] + 1, table[name], label=words, **look)
    _finish(axes, xlabel="epoch", ylim=(-0.03, 1.05))


def _panels(number: int, height: float = 2.9) -> tuple[Figure, list[Axes]]:
    columns = min(2, number)
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(_WIDTH, height * rows + 0.4), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in panels[number:]:
        spare.set_visible(False)
    return figure, panels[:number]


def _finish(axes: Axes, **texts: Any) -> None:
    """Labels, and a quiet grid."""
    axes.set(**texts)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    if texts.get("xlabel") == "epoch":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _picture(figure: Figure, title: str, text: str) -> Picture:
    """The figure with one legend below all panels."""
    panels = (axes.get_legend_handles_labels() for axes in figure.axes)
    entries = {words: line for lines, labels in panels for line, words in zip(lines, labels, strict=True)}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    title, text = printable(title), printable(text)
    figure.suptitle(for_figure(title), fontsize=11, x=0.01, ha="left")
    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": title, "hatch.linewidth": 0.6}):
        figure.savefig(stream, format="svg", metadata={"Title": title, "Description": text, "Date": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue()).decode()
    return Picture(title, f"{title}. {text}", source)
