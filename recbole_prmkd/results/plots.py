"""The figure of a run: what each epoch of distillation did."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from recbole_prmkd.results.names import for_figure, printable

_WEIGHT = "weight_"


def draw_distillation(history: Sequence[Mapping[str, float]], path: Path, title: str) -> None:
    """Plot losses, teachers' weights, agreement and examples in use over the epochs, one panel each.

    Args:
        history: per epoch the numbers that the trainer recorded, as in `result.json`.
        path: an .svg or .png file.
        title: what the run is.
    """
    names = list(dict.fromkeys(name for epoch in history for name in epoch))
    shares = {"inconsistent": "marks that disagree", "agreement": "agreement", "rows_without_knowledge": "not covered"}
    panels = [
        ("loss", {"rec_loss": "rec_loss", "kd_loss": "kd_loss"}),
        ("mean weight", {name: for_figure(name.removeprefix(_WEIGHT)) for name in names if name.startswith(_WEIGHT)}),
        ("share of marks, examples", {name: label for name, label in shares.items() if name in names}),
        ("share of examples in use", {"share": "curriculum"}),
    ]
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    figure.suptitle(for_figure(title))
    for axes, (unit, lines) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name, label in lines.items():
            points = [(epoch["epoch"], epoch[name]) for epoch in history if name in epoch]
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
        axes.set(xlabel="epoch", ylabel=unit)
        if unit != "loss":
            axes.set_ylim(-0.03, 1.05)
        if lines:
            axes.legend()
        axes.grid(alpha=0.3)
    last = ", ".join(f"{name} {value:.4f}" for name, value in history[-1].items() if name != "epoch")
    described = {
        "Title": printable(title),
        "Description": f"Curves over {len(history)} epochs; in the last one: {last}.",
    }
    figure.savefig(path, metadata=described)
