"""Draws picture.svg from the results of `make demo` stored beside it: `python docs/demo/picture.py`."""

from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

HERE = Path(__file__).parent
METRIC = "test unseen ndcg@10"
# kd and model in results.csv -> label, colour
STUDENT, DISTILLED, TEACHER, TOGETHER = "#999999", "#0072B2", "#E69F00", "#009E73"


def main() -> None:
    """Bars: the student alone and distilled with each seed as a dot, the teachers, and the teachers together."""
    table = pd.read_csv(HERE / "results.csv")
    bars = [
        ("SASRec\nalone", table.query("kd == 'none'")[METRIC], STUDENT),
        ("SASRec\nkd=auto", table.query("kd == 'auto'")[METRIC], DISTILLED),
        *(
            (f"teacher\n{name}", part[METRIC], TEACHER)
            for name, part in table.query("kd == 'teacher'").groupby("model", sort=False)
        ),
        ("teachers\ntogether", table.query("kd == 'ensemble'")[METRIC], TOGETHER),
    ]
    with rc_context({"svg.hashsalt": "demo", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for place, (_, values, colour) in enumerate(bars):
            axes.bar(place, values.mean(), 0.7, color=colour)
            axes.text(place, values.mean() + 0.008, f"{values.mean():.4f}".lstrip("0"), ha="center")
            if values.nunique() > 1:
                axes.plot([place] * len(values), values, "o", color="black", ms=3)
        axes.set_xticks(range(len(bars)), [label for label, _, _ in bars])
        axes.set_ylabel("NDCG@10, unseen items")
        axes.set_ylim(0, 0.145)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(HERE / "picture.svg", metadata={"Date": None, "Title": "SASRec on ml-100k, alone and distilled"})


if __name__ == "__main__":
    main()
