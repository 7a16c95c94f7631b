"""The whole run on a small data set: what must be equal is equal bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny
from recbole.quick_start import run_recbole

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.results.run_folder import read_result
from recbole_prmkd.results.schema import RunResult

STUDENTS = ["SASRec", "DeepFM", "LightGCN"]


def weights(folder, model):
    with_config = torch.load(Path(folder) / f"{model}.pth", weights_only=False)
    return with_config["state_dict"]


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("model", STUDENTS)
def test_kd_none_is_stock_recbole(model, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stock_settings = {key: value for key, value in settings().items() if not key.startswith("kd_")}
    if model == "SASRec":  # stock RecBole does not start without these
        stock_settings |= {"train_neg_sample_args": None, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    if model == "DeepFM":
        stock_settings |= {
            "load_col": {"inter": ["user_id", "item_id", "rating"]},
            "threshold": {"rating": 4},
        }
    stock = run_recbole(model, "tiny", config_dict={**stock_settings, "checkpoint_dir": "stock"})
    ours = run_recbole_prmkd(model, "tiny", config_dict={**settings(), **stock_settings, "kd": "none"})
    assert ours["test_result"] == stock["test_result"]
    assert ours["best_valid_result"] == stock["best_valid_result"]
    assert ours["best_valid_score"] == stock["best_valid_score"]
    (checkpoint,) = Path("stock").glob("*.pth")
    assert same(torch.load(checkpoint, weights_only=False)["state_dict"], weights(ours["output_dir"], model))


@pytest.mark.parametrize("model", STUDENTS)
def test_result_is_complete_and_a_warm_run_equals_the_cold_one(model, settings, tmp_path):
    mine = {"kd_cache_dir": str(tmp_path / "cache"), "kd_teacher_dir": str(tmp_path / "teachers")}
    cold = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd", kd_output_dir=str(tmp_path / "1"), **mine))
    warm = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd", kd_output_dir=str(tmp_path / "2"), **mine))
    assert same(weights(tmp_path / "1", model), weights(tmp_path / "2", model))
    assert cold["test_result"] == warm["test_result"]
    made = ["text", "teacher UniSRec", "knowledge UniSRec"]
    assert [cold["result"]["steps"][step]["reused"] for step in made] == [False] * 3
    assert [warm["result"]["steps"][step]["reused"] for step in made] == [True] * 3
    result = read_result(tmp_path / "1")
    assert json.loads((tmp_path / "1" / "result.json").read_text())["schema"] == "recbole_prmkd/1"
    assert {"valid", "test", "valid_unseen", "test_unseen"} <= set(
        RunResult.model_json_schema()["$defs"]["StudentResult"]["properties"]
    )
    assert "ndcg@10" in result.student.test and "ndcg@10" in result.teachers["UniSRec"].test_unseen
    assert len(result.distillation) == 2 and result.distillation[0]["kd_loss"] > 0
    assert result.distillation[0]["kd_every"] == (1 if model == "SASRec" else 4)
    assert result.distillation[0]["share"] == pytest.approx(0.2) and result.student.parameters > 0
    assert list((tmp_path / "1").glob("tensorboard/events*")) and list((tmp_path / "1").glob("log/**/*.log"))
    assert not (tmp_path / "1" / "unfinished").exists()


def test_runs_of_other_seeds_share_the_teachers_where_these_have_a_seed_of_their_own(settings, tmp_path):
    def run(seed, **more):
        result = run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="prmkd", seed=seed, **more))["result"]
        return result["steps"]["teacher UniSRec"]["reused"], result["config"]["kd_teacher_seed"]

    more = {"kd_cache_dir": str(tmp_path / "cache"), "kd_teacher_dir": str(tmp_path / "teachers")}
    assert run(1, **more) == (False, 1)
    assert run(2, kd_teacher_seed=1, **more) == (True, 1)
    assert run(2, **more) == (False, 2)


@pytest.mark.parametrize("model", STUDENTS)
def test_weight_zero_equals_no_distillation(model, settings, tmp_path):
    alone = run_recbole_prmkd(
        model, "tiny", config_dict=settings(kd="none", kd_protocol="ranking", kd_output_dir=str(tmp_path / "1"))
    )
    zero = run_recbole_prmkd(
        model, "tiny", config_dict=settings(kd="prmkd", kd_weight=0, kd_output_dir=str(tmp_path / "2"))
    )
    assert alone["result"]["student"]["train_losses"] == zero["result"]["student"]["train_losses"]
    assert same(weights(tmp_path / "1", model), weights(tmp_path / "2", model))


def test_distilled_student_loads_in_stock_recbole(settings, tmp_path):
    """A process that never imports this package; the aliases are what RecBole 1.2.0 itself lacks today."""
    run = run_recbole_prmkd("LightGCN", "tiny", config_dict=settings(kd="prmkd"))
    script = f"""
import sys, numpy as np, torch
from scipy.sparse import dok_matrix
np.float_, np.complex_, np.unicode_ = np.float64, np.complex128, np.str_
dok_matrix._update = lambda self, data: self._dict.update(data)
from recbole.config import Config
Config.compatibility_settings(None)
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer
config, model, dataset, train, valid, test = load_data_and_model({str(tmp_path / "out" / "LightGCN.pth")!r})
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
print(dict(trainer.evaluate(test, load_best_model=False)))
print("imported" if "recbole_prmkd" in sys.modules else "stock")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    *_, metrics, kind = done.stdout.strip().splitlines()
    assert kind == "stock"
    assert eval(metrics, {"np": np}) == dict(run["test_result"])


def test_no_validation_or_test_item_reaches_the_cache(settings, tmp_path):
    """Changing the last item (test) or the last but one (validation) of a user changes no byte of what is made."""
    made = []
    for number, swap in enumerate([None, (3, -1, 20), (5, -2, 7)]):
        data = write_tiny(tmp_path / f"data{number}", swap=swap)
        folder = tmp_path / f"run{number}"
        run_recbole_prmkd(
            "SASRec",
            "tiny",
            config_dict=settings(
                kd="prmkd",
                kd_teachers=["UniSRec", "Linear"],
                data_path=str(data),
                kd_cache_dir=str(folder / "cache"),
                kd_teacher_dir=str(folder / "teachers"),
                kd_output_dir=str(folder / "out"),
            ),
        )
        files = [
            f
            for part in ("cache", "teachers")
            for f in (folder / part).rglob("*")
            if f.suffix in {".npy", ".safetensors"}
        ]
        made.append({str(file.relative_to(folder)): file.read_bytes() for file in files})
    # Texts and vectors; of both teachers weights and four arrays of the holdout; UniSRec's two arrays, Linear's four.
    assert len(made[0]) == 2 + 2 * 5 + 2 + 4
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("model", STUDENTS)
def test_a_curriculum_of_all_rows_equals_none(model, settings, tmp_path):
    runs = []
    for number, curriculum in enumerate((dict(kd_curriculum="none"), dict(kd_curriculum="easy", kd_pacing_start=1.0))):
        folder = str(tmp_path / str(number))
        run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd", kd_output_dir=folder, **curriculum))
        runs.append(weights(folder, model))
    assert same(*runs)


def test_shared_prefixes_train_the_same_rows(settings, tmp_path):
    """The same student on windows: in an epoch of one batch, and without dropout, the same loss."""
    alone = dict(kd="none", train_batch_size=4096, epochs=1, hidden_dropout_prob=0.0, attn_dropout_prob=0.0)
    alone["MAX_ITEM_LIST_LENGTH"] = 50  # no history is cut
    stock = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(**alone, kd_output_dir=str(tmp_path / "1")))
    windows = run_recbole_prmkd(
        "SASRec", "tiny", config_dict=settings(**alone, kd_shared_prefixes=True, kd_output_dir=str(tmp_path / "2"))
    )
    left, right = (run["result"]["student"]["train_losses"] for run in (stock, windows))
    assert left == pytest.approx(right, rel=1e-5)


def test_unseen_ranking_of_a_sequential_student_is_higher(settings):
    """Leaving out wrong items can only move targets up, and some of them pass items that the user has had."""
    run = run_recbole_prmkd("GRU4Rec", "tiny", config_dict=settings(kd="mean", loss_type="CE"))
    student = run["result"]["student"]
    assert student["test_unseen"]["ndcg@10"] > student["test"]["ndcg@10"]


@pytest.mark.parametrize("model", ["SASRec", "DeepFM"])
def test_validations_may_rank_samples_while_the_test_ranks_all(model, settings):
    arguments = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user"}
    arguments["mode"] = {"valid": "uni3", "test": "full"}
    result = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="mean", epochs=1, eval_args=arguments))
    assert result["best_valid_result"]["recall@10"] == 1  # the target is one of four
    assert 0 < result["test_result"]["recall@10"] < 1
    assert result["result"]["student"]["valid_unseen"]["recall@10"] < 1 or model == "DeepFM"


RATIO = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "group_by": None, "mode": "full"}


def test_histories_too_short_to_learn_from(settings, tmp_path):
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    lines = [f"u{user}\ti{(user + step) % 9}\t{step}" for user in range(12) for step in range(3)]
    (data / "tiny.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")
    (data / "tiny.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\ta {n}\n" for n in range(9)))
    with pytest.raises(UserError, match="No training example has a history that UniSRec could learn from"):
        run_recbole_prmkd("LightGCN", "tiny", config_dict=settings(kd="mean", data_path=str(tmp_path / "data")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("SASRec", {"metrics": ["NDCG", "ItemCoverage", "AveragePopularity"], "valid_metric": "NDCG@10"}),
        ("BPR", {"eval_args": RATIO}),  # users whose first items are in a later part
        ("MultiDAE", {"enable_amp": True, "train_neg_sample_args": None}),
        ("SASRec", {"kd_unisrec_epochs": 0, "kd_confidence": "validation"}),
    ],
)
def test_unusual_settings_are_run(model, more, settings):
    run = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd", epochs=1, **more))
    (epoch,) = run["result"]["distillation"]
    assert np.isfinite(epoch["kd_loss"]) and run["test_result"]["ndcg@10"] > 0
    teacher = run["result"]["teachers"]["UniSRec"]
    assert teacher["test"]["ndcg@10"] > 0 and 0 < teacher["holdout"] < 1
    if "metrics" in more:  # a teacher has no data set to count in
        assert "itemcoverage@10" in run["test_result"] and set(teacher["test"]) == {"ndcg@10"}


def test_a_teacher_made_with_other_precision_is_another_one(settings, tmp_path):
    folders = {"kd_cache_dir": str(tmp_path / "cache"), "kd_teacher_dir": str(tmp_path / "teachers")}
    reused = []
    for more in ({}, {"enable_amp": True}, {"enable_amp": True}, {"metric_decimal_place": 3}, {}):
        given = settings(kd="mean", epochs=0, **more, **folders)
        result = run_recbole_prmkd("SASRec", "tiny", config_dict=given)["result"]
        reused.append(result["steps"]["teacher UniSRec"]["reused"])
    assert reused == [False, False, True, False, True]


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_half_precision_trains_a_sequential_student_as_single_precision_does(model, settings):
    runs = [
        run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd_plus", kd_item_init="none", enable_amp=amp))
        for amp in (False, True)
    ]
    single, half = (run["result"] for run in runs)
    assert half["student"]["kd"] == single["student"]["kd"]
    for rounded, exact in zip(half["distillation"], single["distillation"], strict=True):
        assert rounded["rec_loss"] == pytest.approx(exact["rec_loss"], rel=0.01)
        assert rounded["kd_loss"] == pytest.approx(exact["kd_loss"], rel=0.15)  # its teachers are rounded too
