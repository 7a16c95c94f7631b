"""The figure of a run: made from what the trainer recorded, described in words."""

from xml.etree import ElementTree

from matplotlib.axes import Axes

from recbole_prmkd import quick_start, run_recbole_prmkd
from recbole_prmkd.results.plots import draw_distillation
from recbole_prmkd.results.run_folder import CURVES


def test_figure_stands_beside_the_result(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(quick_start, "draw_distillation", draw_distillation)  # conftest leaves it out
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="prmkd"))
    text = (tmp_path / "out" / CURVES).read_text()
    ElementTree.fromstring(text)
    last = run["result"]["distillation"][-1]
    assert "SASRec on tiny, kd=prmkd" in text and f"kd_loss {last['kd_loss']:.4f}" in text


def test_every_number_is_in_the_figure(tmp_path, monkeypatch):
    lines, plot = {}, Axes.plot

    def noting(axes, epochs, values, label, **more):
        lines[label] = list(zip(epochs, values, strict=True))
        return plot(axes, epochs, values, label=label, **more)

    monkeypatch.setattr(Axes, "plot", noting)
    history = [{"epoch": 0, "rec_loss": 5.0, "kd_loss": 1.0, "weight_A": 0.3, "inconsistent": 0.1, "share": 0.2}]
    draw_distillation([*history, {**history[0], "epoch": 1, "kd_loss": 0.5}], tmp_path / "a.png", "a run")
    assert (tmp_path / "a.png").is_file() and lines["kd_loss"] == [(0, 1.0), (1, 0.5)]
    still = {"rec_loss": 5.0, "A": 0.3, "marks that disagree": 0.1, "curriculum": 0.2}
    assert {name: values for name, values in lines.items() if name != "kd_loss"} == {
        name: [(0, value), (1, value)] for name, value in still.items()
    }


def test_no_figure_without_distillation(settings, tmp_path):
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="none"))
    assert not (tmp_path / "out" / CURVES).exists()
