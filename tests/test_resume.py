"""A killed run continues with the same command, bit-equal, and says so; any other one starts anew."""

import json

import pytest
import torch

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.results import resume

STUDENTS = ["SASRec", "LightGCN", "RecVAE"]


def run(settings, folder, model="LightGCN", **more):
    own = {"train_neg_sample_args": None} if model == "RecVAE" else {}
    given = settings(**{"kd": "prmkd", "kd_protocol": "ranking", "epochs": 5, "kd_pacing_length": 3, **own, **more})
    return run_recbole_prmkd(model, "tiny", config_dict={**given, "kd_output_dir": str(folder)})


def killed(monkeypatch, settings, folder, after=2, **more):
    """A run that ends when the state of this epoch has been kept."""
    keep = resume.Progress.keep

    def stop(self, trainer, train_data, epoch):
        keep(self, trainer, train_data, epoch)
        if epoch == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume.Progress, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            run(settings, folder, **more)
    assert (folder / "unfinished" / "progress.json").is_file() and not (folder / "result.json").exists()


def assert_equal(left, right, model="LightGCN"):
    results = [json.loads((folder / "result.json").read_text()) for folder in (left, right)]
    for result in results:
        result["student"].pop("train_seconds")
    assert results[0]["student"] == results[1]["student"]
    assert results[0]["distillation"] == results[1]["distillation"]
    weights = [torch.load(folder / f"{model}.pth", weights_only=False)["state_dict"] for folder in (left, right)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    names = [sorted(path.name for path in folder.iterdir()) for folder in (left, right)]
    assert names[0] == names[1]  # nothing of the state is left


@pytest.mark.parametrize("more", [{}, {"kd": "none"}, {"eval_step": 2}, {"eval_step": 0}, {"kd": "mean_teacher"}])
@pytest.mark.parametrize("model", STUDENTS)
def test_a_killed_run_continues(model, more, settings, tmp_path, monkeypatch, capfd):
    given = {"model": model, **more}
    run(settings, tmp_path / "whole", **given)
    killed(monkeypatch, settings, tmp_path / "killed", **given)
    capfd.readouterr()
    run(settings, tmp_path / "killed", **given)
    out = "".join(capfd.readouterr())
    assert "Training goes on after epoch 2" in out and "epoch 3 training" in out and "epoch 2 training" not in out
    assert_equal(tmp_path / "whole", tmp_path / "killed", model)


def test_what_only_training_has_continues_too(settings, tmp_path, monkeypatch, capfd):
    """The projections of `align` and what their optimizer knows of them."""
    test_a_killed_run_continues("SASRec", {"kd": "align"}, settings, tmp_path, monkeypatch, capfd)


def test_killed_after_the_last_epoch(settings, tmp_path, monkeypatch):
    """The best epoch's weights stay the best, though nothing is trained any more."""
    more = {"learning_rate": 0.5, "stopping_step": 1, "epochs": 30}
    whole = run(settings, tmp_path / "whole", **more)["result"]["student"]["epochs"]
    assert whole < 30  # stopped early, so the last weights are not the best
    killed(monkeypatch, settings, tmp_path / "killed", after=whole - 1, **more)
    run(settings, tmp_path / "killed", **more)
    assert_equal(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("damage", ["settings", "index", "state", "best", "half-written best"])
def test_another_state_is_not_used(damage, settings, tmp_path, monkeypatch, capfd):
    """Other settings and damaged files start anew; a checkpoint that RecBole was writing does not matter."""
    more = {"learning_rate": 0.02} if damage == "settings" else {}
    run(settings, tmp_path / "whole", **more)
    killed(monkeypatch, settings, tmp_path / "killed")
    work = tmp_path / "killed" / "unfinished"
    if damage == "half-written best":
        (work / "LightGCN.pth").write_bytes(b"PK")
    elif damage != "settings":
        (file,) = work.glob({"index": "progress.json", "state": "*.pt", "best": "progress-*.pth"}[damage])
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    capfd.readouterr()
    run(settings, tmp_path / "killed", **more)
    out = "".join(capfd.readouterr())
    assert ("epoch 0 training" in out) == (damage != "half-written best")
    assert ("another value of learning_rate" in out) == (damage == "settings")
    assert_equal(tmp_path / "whole", tmp_path / "killed")
