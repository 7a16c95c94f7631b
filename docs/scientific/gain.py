"""Draws gain.svg from the runs stored beside it: `python docs/scientific/gain.py`."""

from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

HERE = Path(__file__).parent
METRIC = "test unseen ndcg@10"  # the ranking in which sequential and other students compare
# student -> the files of its runs alone and distilled, each with five seeds
RUNS = {
    "SASRec": ("results-sasrec.csv", "results-sasrec.csv"),
    "GRU4Rec": ("results-gru4rec.csv", "results-gru4rec.csv"),
    "LightGCN": ("h200/students.csv", "results-no-order.csv"),
    "DeepFM": ("h200/students.csv", "results-no-order.csv"),
}


def runs(file: str, model: str, kd: str) -> pd.Series:
    """The metric of each seed."""
    table = pd.read_csv(HERE / file).query("dataset == 'amazon18-scientific' and model == @model and kd == @kd")
    return table[METRIC]


def main() -> None:
    """Bars of mean and deviation, and a band from the weakest to the best teacher."""
    with rc_context({"svg.hashsalt": "gain", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        teachers = [
            runs("results-sasrec.csv", name, "teacher").item() for name in ("UniSRec", "UniSRec_text", "UniM2Rec")
        ]
        axes.axhspan(min(teachers), max(teachers), color="#E69F00", alpha=0.25, lw=0)
        axes.text(3.45, sum(teachers) / 3, "the three teachers", ha="right", va="center")
        for place, (model, files) in enumerate(RUNS.items()):
            alone, distilled = runs(files[0], model, "none"), runs(files[1], model, "prmkd_plus")
            first = axes.bar(place - 0.2, alone.mean(), 0.38, yerr=alone.std(), color="#999999", capsize=3)
            second = axes.bar(place + 0.2, distilled.mean(), 0.38, yerr=distilled.std(), color="#0072B2", capsize=3)
            gain = distilled.mean() / alone.mean() - 1
            axes.text(
                place + 0.2, distilled.mean() + 0.003, f"{gain:+.0%}".replace("%", " %"), ha="center", va="bottom"
            )
        axes.legend(
            [first, second], ["student alone", "distilled (prmkd_plus)"], loc="upper right", ncols=2, frameon=False
        )
        axes.set_xticks(range(len(RUNS)), RUNS)
        axes.set_ylabel("NDCG@10, unseen items")
        axes.set_ylim(0, 0.115)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(
            HERE / "gain.svg", metadata={"Date": None, "Title": "Gain of four students on amazon18-scientific"}
        )


if __name__ == "__main__":
    main()
