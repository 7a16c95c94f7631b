"""The figure of a run: drawn from what the trainer recorded, described in words."""

from xml.etree import ElementTree

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.results.plots import draw_distillation
from recbole_prmkd.results.run_folder import CURVES


def test_figure_stands_beside_the_result(settings, tmp_path):
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="prmkd"))
    text = (tmp_path / "out" / CURVES).read_text()
    ElementTree.fromstring(text)
    last = run["result"]["distillation"][-1]
    assert "SASRec on tiny, kd=prmkd" in text and f"kd_loss {last['kd_loss']:.4f}" in text


def test_every_number_is_drawn(tmp_path):
    history = [{"epoch": 0, "rec_loss": 5.0, "kd_loss": 1.0, "weight_A": 0.3, "inconsistent": 0.1, "share": 0.2}]
    draw_distillation([*history, {**history[0], "epoch": 1, "kd_loss": 0.5}], tmp_path / "a.png", "a run")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_no_figure_without_distillation(settings, tmp_path):
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="none"))
    assert not (tmp_path / "out" / CURVES).exists()
