"""`kd_guard`: three students under one roof, each as in a run of its own; the best on validation is kept."""

import json

import pytest
import torch
from conftest import write_tiny

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.guard import best_of
from recbole_prmkd.results import resume
from recbole_prmkd.results.report import table
from recbole_prmkd.results.run_folder import read_result

HARM = {"kd_shuffled_teachers": True, "kd_weight": 1000.0, "kd_protocol": "ranking"}


def run(settings, folder, model="SASRec", **more):
    given = settings(**{"kd": "prmkd", **more})
    return run_recbole_prmkd(model, "tiny", config_dict={**given, "kd_output_dir": str(folder)})


def weights(folder, model="SASRec"):
    return torch.load(folder / f"{model}.pth", weights_only=False)["state_dict"]


def assert_same(left, right, model="SASRec"):
    one, other = weights(left, model), weights(right, model)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    students = [json.loads((folder / "result.json").read_text())["student"] for folder in (left, right)]
    for student in students:
        student.pop("train_seconds")
    assert students[0] == students[1]


@pytest.mark.parametrize(
    ("model", "kept"), [("SASRec", "prmkd"), ("SASRec", "none"), ("LightGCN", "warm_start"), ("DeepFM", "none")]
)
def test_each_student_is_that_of_a_run_of_its_own(model, kept, settings, tmp_path, monkeypatch):
    """Whichever is kept: bit-equal weights, metrics, losses and returned numbers."""
    alone = {} if kept == "prmkd" else {"kd_protocol": "ranking", "kd_shared_prefixes": model == "SASRec"}
    own = run(settings, tmp_path / "own", model, kd=kept, **alone)
    monkeypatch.setattr("recbole_prmkd.guard.best_of", lambda scores, bigger: kept)
    guarded = run(settings, tmp_path / "guarded", model, kd_guard=True, kd_save_ranks=True)
    assert_same(tmp_path / "own", tmp_path / "guarded", model)
    for name in ("best_valid_score", "best_valid_result", "test_result", "valid_score_bigger"):
        assert guarded[name] == own[name]
    result = read_result(tmp_path / "guarded")
    assert result.guard.kept == kept and result.guard.valid[kept] == own["best_valid_score"]
    assert result.guard.students.keys() == result.guard.valid.keys()
    assert result.guard.students[kept].test_unseen == result.student.test_unseen
    assert len(result.distillation) == 2 and all(f"training {kd}" in result.steps for kd in ("none", "warm_start"))
    wanted = {path.name for path in (tmp_path / "own").iterdir()} | {"distillation.svg", "test_ranks.npz"}
    assert {path.name for path in (tmp_path / "guarded").iterdir()} == wanted
    curves = {path.parent.name for path in (tmp_path / "guarded" / "tensorboard").rglob("events*")}
    assert curves >= {"tensorboard", "none", "warm_start"}


def test_harmful_teachers_do_no_harm(settings, tmp_path, capfd):
    harmed = run(settings, tmp_path / "harmed", epochs=8, **HARM)
    guarded = run(settings, tmp_path / "guarded", epochs=8, kd_guard=True, **HARM)
    assert guarded["best_valid_score"] > harmed["best_valid_score"]
    guard = guarded["result"]["guard"]
    assert guard["kept"] != "prmkd" and guard["valid"]["prmkd"] == harmed["best_valid_score"]
    assert guard["valid"][guard["kept"]] == guarded["best_valid_score"]
    assert f"kd_guard keeps {guard['kept']}: best validation MRR@10 prmkd" in "".join(capfd.readouterr())
    (line,) = table([tmp_path / "guarded"]).filter(like="student", axis=0).index
    assert f"SASRec, prmkd, guard: {guard['kept']}" in line


def _without(settings, folder, **more):
    run(settings, folder, **more)
    return folder


def test_without_text_there_are_two_and_good_teachers_are_kept(settings, tmp_path, capfd):
    data = write_tiny(tmp_path / "data")
    (data / "tiny" / "tiny.item").unlink()
    more = {"data_path": str(data), "kd_teachers": ["Linear"], "learning_rate": 0.01, "epochs": 4}
    guarded = run(settings, tmp_path / "guarded", kd_guard=True, **more)
    guard = guarded["result"]["guard"]
    assert [*guard["valid"]] == ["prmkd", "none"] and guard["kept"] == "prmkd"
    assert guard["valid"]["prmkd"] > guard["valid"]["none"] > 0
    assert "kd_guard trains no warm-started student" in "".join(capfd.readouterr())


def test_a_student_without_an_item_table_has_no_warm_start(settings, tmp_path, capfd):
    guarded = run(settings, tmp_path / "guarded", "MultiDAE", kd_guard=True, train_neg_sample_args=None)
    assert [*guarded["result"]["guard"]["valid"]] == ["prmkd", "none"]
    assert "kd_guard trains no warm-started student: MultiDAE has no embedding" in "".join(capfd.readouterr())


def test_without_a_weight_the_plain_student_is_kept(settings, tmp_path):
    """All is equal then."""
    guard = run(settings, tmp_path / "guarded", kd_guard=True, kd_weight=0)["result"]["guard"]
    assert guard["valid"]["prmkd"] == guard["valid"]["none"] and guard["kept"] in ("none", "warm_start")


@pytest.mark.parametrize(
    ("scores", "bigger", "best"),
    [
        ({"prmkd": 0.2, "none": 0.1, "warm_start": 0.1}, True, "prmkd"),
        ({"prmkd": 0.2, "none": 0.2, "warm_start": 0.2}, True, "none"),
        ({"prmkd": 0.2, "none": 0.1, "warm_start": 0.2}, True, "warm_start"),
        ({"prmkd": 0.2, "none": 0.1, "warm_start": 0.3}, False, "none"),
        ({"prmkd": 0.2, "none": float("nan")}, True, "prmkd"),
        ({"prmkd": float("nan"), "none": 0.2}, False, "none"),
    ],
)
def test_the_best_of_scores(scores, bigger, best):
    assert best_of(scores, bigger) == best


@pytest.mark.parametrize("killed_in", ["prmkd", "warm_start"])
def test_a_killed_run_goes_on_with_the_student_in_which_it_stopped(killed_in, settings, tmp_path, monkeypatch, capfd):
    more = {"kd_guard": True, "epochs": 3, **HARM}
    run(settings, tmp_path / "whole", "LightGCN", **more)
    keep = resume.Progress.keep

    def stop(self, trainer, train_data, epoch):
        keep(self, trainer, train_data, epoch)
        if epoch == 1 and self.config["kd"] == killed_in:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume.Progress, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "killed", "LightGCN", **more)
    capfd.readouterr()
    run(settings, tmp_path / "killed", "LightGCN", **more)
    out = "".join(capfd.readouterr())
    before = ["prmkd", "none", "warm_start"].index(killed_in)
    assert out.count("Training goes on after epoch 2") == before and out.count("Training goes on after epoch 1") == 1
    assert out.count("epoch 0 training") == 2 - before and out.count("epoch 2 training") == 3 - before
    assert_same(tmp_path / "whole", tmp_path / "killed", "LightGCN")
    results = [read_result(tmp_path / name) for name in ("whole", "killed")]
    assert results[0].guard == results[1].guard and results[0].distillation == results[1].distillation
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("whole", "killed")]
    assert names[0] == names[1]


def test_killed_before_its_result_a_run_trains_nothing_again(settings, tmp_path, monkeypatch, capfd):
    """The plain student's weights have taken the place of the distilled one's by then."""
    more = {"kd_guard": True, **HARM}
    run(settings, tmp_path / "whole", "LightGCN", **more)
    with monkeypatch.context() as patch:
        patch.setattr("recbole_prmkd.quick_start.write_result", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "killed", "LightGCN", **more)
    capfd.readouterr()
    run(settings, tmp_path / "killed", "LightGCN", **more)
    assert "epoch 0 training" not in "".join(capfd.readouterr())
    assert_same(tmp_path / "whole", tmp_path / "killed", "LightGCN")
    results = [read_result(tmp_path / name) for name in ("whole", "killed")]
    assert results[0].guard == results[1].guard and results[0].guard.kept != "prmkd"
    assert results[0].distillation == results[1].distillation


def test_a_killed_guard_leaves_nothing_to_a_run_without_it(settings, tmp_path, monkeypatch):
    keep = resume.Progress.keep

    def stop(self, trainer, train_data, epoch):
        keep(self, trainer, train_data, epoch)
        if self.config["kd"] == "none":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume.Progress, "keep", stop)
        with pytest.raises(KeyboardInterrupt):
            run(settings, tmp_path / "out", "LightGCN", kd_guard=True)
    run(settings, tmp_path / "out", "LightGCN")
    assert read_result(tmp_path / "out").guard is None
    assert_same(tmp_path / "out", _without(settings, tmp_path / "other", model="LightGCN"), "LightGCN")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {p.name for p in (tmp_path / "other").iterdir()}


TEST_ONLY = {"split": {"LS": "test_only"}, "order": "TO", "group_by": "user", "mode": "full"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"kd": "ensemble"}, "kd=ensemble trains no student, so kd_guard has no use: leave it out"),
        ({"eval_step": 0}, "kd_guard keeps the best student on validation, but eval_step is 0"),
        ({"eval_args": TEST_ONLY}, "the validation part is empty"),
        ({"kd_text_fields": ["colour"]}, "colour"),
        ({"kd_guard": "sometimes"}, "kd_guard = 'sometimes' is not true or false"),
    ],
)
def test_refused(more, said, settings, tmp_path):
    with pytest.raises(UserError, match=said):
        run(settings, tmp_path / "out", **{"kd_guard": True, "kd_teachers": ["Linear"], **more})
    assert not (tmp_path / "out" / "result.json").exists()


def test_without_distillation_it_has_no_effect(settings, tmp_path, caplog):
    result = run(settings, tmp_path / "out", "LightGCN", kd="warm_start", kd_guard=True)["result"]
    assert result["guard"] is None and "kd_guard has no effect here: kd is warm_start" in caplog.text
