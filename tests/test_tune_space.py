"""Search spaces: what is read, what is refused before Ray starts, each with the key's name."""

import math
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import yaml

from recbole_prmkd import UserError
from recbole_prmkd.tune import run_sweep
from recbole_prmkd.tune.plan import write_plan
from recbole_prmkd.tune.search import ray_domain, tune_config
from recbole_prmkd.tune.settings import read_sweep
from recbole_prmkd.tune.space import Domain, read_space
from recbole_prmkd.tune.sweep import for_all_trials, plan_and_folder

HYPER = Path(__file__).parent.parent / "hyper"
STUDENTS = {"sasrec": "SASRec", "context": "DeepFM", "graph": "LightGCN", "general": "BPR", "method": "SASRec"}


@pytest.fixture
def planned(settings, tmp_path, monkeypatch):
    """Plan a sweep, in which Ray must not start."""
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.chdir(tmp_path)

    def plan(content, model="SASRec", name="sweep.yaml", **more):
        file = tmp_path / name
        file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        free = {
            "train_batch_size",
            "hidden_size",
            "inner_size",
            "mlp_hidden_size",
            "embedding_size",
            "epochs",
            "kd_output_dir",
        }
        fixed = {key: value for key, value in settings(kd="prmkd").items() if key not in free}
        return plan_and_folder(model, "tiny", None, {**fixed, **more}, str(file))

    return plan


@pytest.mark.parametrize("name", STUDENTS)
def test_the_files_in_hyper_are_legal(name, planned):
    plan, folder = planned((HYPER / f"{name}.yaml").read_text(), STUDENTS[name])
    assert [ray_domain(domain) for domain in plan.domains] and not folder.exists()


def test_recbole_lines(tmp_path):
    lines = """
learning_rate loguniform -8,0
mlp_hidden_size choice ['[64,64]','[128]']
train_batch_size choice [512, 1024]
dropout_prob quniform 0,0.5,0.1
kd_weight uniform 1,10
"""
    (tmp_path / "hyper.test").write_text(lines)
    domains = {domain.key: domain for domain in read_sweep(tmp_path / "hyper.test").domains}
    assert domains["learning_rate"].values == (math.exp(-8), 1.0)
    assert domains["mlp_hidden_size"].values == ([64, 64], [128])
    assert domains["dropout_prob"].values == (0, 0.5, 0.1) and domains["kd_weight"].kind == "uniform"


def test_what_ray_samples_becomes_the_settings_again():
    choice, whole, step = read_space(
        {"a": {"choice": [[8], [8, 8], None]}, "b": {"integer": [1, 3]}, "c": {"quniform": [2, 8, 2]}}
    )
    assert [choice.setting(value) for value in ("[8]", "[8, 8]", None)] == [[8], [8, 8], None]
    assert whole.setting(2) == 2 and step.setting(4.0) == 4 and isinstance(step.setting(4.0), int)
    assert Domain("d", "uniform", (0.5, 2)).setting(2.4) == 2 and whole.setting(0) == 1
    assert Domain("e", "quniform", (0, 0.5, 0.1)).setting(0.26) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"kd_wieght": {"uniform": [1, 2]}}, "kd_wieght.*kd_weight"),
        ({"lerning_rate": {"uniform": [1, 2]}}, "lerning_rate.*learning_rate"),
        ({"kd_weight": {"uniform": [3, 1]}}, "kd_weight is empty"),
        ({"kd_weight": {"choice": []}}, "kd_weight is empty"),
        ({"kd_weight": {"uniform": [1, "x"]}}, "kd_weight"),
        ({"kd_weight": {"uniform": [1]}}, "kd_weight"),
        ({"kd_weight": {"normal": [1, 2]}}, "kd_weight"),
        ({"kd_weight": [1, 2]}, "kd_weight"),
        ({"kd_weight": {"choice": [1, "much"]}}, "kd_weight.*much"),
        ({"kd_weight": {"uniform": [-1, 2]}}, "kd_weight.*out of range"),
        ({"kd_weight": {"loguniform": [0, 2]}}, "kd_weight.*above 0"),
        ({"kd_weight": {"quniform": [0, 1, 0.3]}}, "kd_weight.*multiples"),
        ({"kd_weight": {"choice": [1, 2, 1]}}, "kd_weight names a value twice"),
        ({"kd_pacing_length": {"integer": [1, 5.5]}}, "kd_pacing_length needs whole numbers"),
        ({"kd_pacing_length": {"uniform": [1, 5]}}, "kd_pacing_length.*whole number"),
        ({"kd_curriculum": {"choice": ["none", "eesy"]}}, "kd_curriculum.*easy"),
        ({"hidden_size": {"uniform": [16, 64]}}, "hidden_size.*valid integer"),
        ({"hidden_size": {"choice": ["big"]}}, "hidden_size.*big"),
        ({"learning_rate": {"choice": [True]}}, "learning_rate"),
        ({"kd_unisrec_epochs": {"choice": [1, 2]}}, "kd_unisrec_epochs.*once"),
        ({"kd_text_encoder": {"choice": ["a"]}}, "kd_text_encoder.*once"),
        ({"kd_teacher_seed": {"choice": [1, 2]}}, "kd_teacher_seed.*once"),
        ({"kd_window_context": {"choice": [0.2, 0.5]}}, "kd_window_context.*once"),
        ({"MAX_ITEM_LIST_LENGTH": {"choice": [5, 6]}}, "MAX_ITEM_LIST_LENGTH.*data"),
        ({"valid_metric": {"choice": ["MRR@10"]}}, "valid_metric"),
        ({"gpu_id": {"choice": ["0"]}}, "gpu_id"),
        ({"show_progress": {"choice": [True]}}, "show_progress"),
        ({"stopping_step": {"choice": [3]}, "kd_temperature": {"choice": [0]}}, "kd_temperature"),
    ],
)
def test_a_wrong_space_is_refused_by_name(space, sentence, planned):
    with pytest.raises(UserError, match=sentence):
        planned({"space": space})


@pytest.mark.parametrize(
    ("model", "key"),
    [("FEARec", "spatial_ratio"), ("DCN", "reg_weight"), ("SimpleX", "negative_weight"), ("NNCF", "resolution")],
)
def test_a_whole_default_of_a_real_number_takes_others(model, key, planned):
    """RecBole writes them as 0, 2, 10 and 1."""
    plan, _ = planned({"space": {key: {"uniform": [0.5, 1.5]}}}, model)
    assert plan.config({key: 0.75})[key] == 0.75


@pytest.mark.parametrize(
    ("model", "key"), [("FEARec", "n_layers"), ("NAIS", "weight_size"), ("DCN", "cross_layer_num")]
)
def test_counts_take_whole_numbers_alone(model, key, planned):
    with pytest.raises(UserError, match=f"{key} holds 1.0: .*valid integer"):
        planned({"space": {key: {"uniform": [1, 3]}}}, model)


@pytest.mark.parametrize("scheduler", ["none", "asha", "median", "pbt", {"name": "asha", "grace": 40, "reduction": 2}])
@pytest.mark.parametrize("search", ["random", "optuna"])
def test_search_and_scheduler_are_rays(search, scheduler, planned):
    if scheduler == "pbt":
        search = "random"
    space = {"kd_weight": {"loguniform": [0.5, 20]}, "kd_curriculum": {"choice": ["none", "easy"]}}
    plan, _ = planned({"space": space, "search": search, "scheduler": scheduler, "trials": 4, "max_concurrent": 2})
    made = tune_config(plan.sweep, plan.config({"kd_weight": 1.0}), max_length=10)
    assert made.num_samples == 4 and made.mode == "max"
    assert made.metric == ("mrr@10" if scheduler == "pbt" else "best_score")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"shceduler": "asha"}, "shceduler"),
        ({"scheduler": "halving"}, "scheduler"),
        ({"scheduler": {"name": "asha", "grase": 2}}, "grase"),
        ({"search": "tpe"}, "search"),
        ({"search": "grid", "trials": 3}, "grid"),
        ({"search": "grid", "space": {"kd_weight": {"uniform": [1, 2]}}}, "kd_weight.*grid"),
        ({"search": "optuna", "scheduler": "pbt"}, "pbt"),
        ({"resources": {"gpus": 1}}, "gpus"),
        ({"resources": {"cpu": 0}}, "cpu"),
        ({"trials": 0}, "trials"),
        ({"max_failures": "two"}, "max_failures"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(more, sentence, planned):
    with pytest.raises(UserError, match=sentence):
        planned({"space": {"kd_weight": {"choice": [1, 2]}}, **more})


@pytest.mark.parametrize("key", ["n_layers", "inner_size", "epochs", "learner"])
def test_a_population_may_not_change_what_a_student_is(key, planned, tmp_path):
    space = {
        key: {"choice": ["adam", "sgd"] if key == "learner" else [8, 16]},
        "learning_rate": {"uniform": [0.1, 0.2]},
    }
    with pytest.raises(UserError, match=key):
        planned({"space": space, "scheduler": "pbt"})
    assert not (tmp_path / "runs").exists()


def test_a_population_may_change_the_rest(planned):
    space = {"hidden_dropout_prob": {"uniform": [0.1, 0.5]}, "kd_weight": {"uniform": [1, 5]}}
    assert planned({"space": {**space, "learning_rate": {"loguniform": [0.001, 0.1]}}, "scheduler": "pbt"})


def test_no_key_is_both_searched_and_fixed(planned):
    with pytest.raises(UserError, match=r"kd_weight.*fixed"):
        planned({"space": {"kd_weight": {"choice": [1, 2]}}}, kd_weight=3)


def test_two_sweeps_of_the_same_moment_have_two_folders(planned, monkeypatch):
    class Stopped:
        @staticmethod
        def now():
            return __import__("datetime").datetime(2026, 1, 1)

    monkeypatch.setattr("recbole_prmkd.tune.sweep.datetime", Stopped)
    content = {"space": {"kd_weight": {"choice": [1, 2]}}}
    assert planned(content)[1] != planned(content)[1]


def test_a_folder_is_never_used_twice(planned, tmp_path):
    content = {"space": {"kd_weight": {"choice": [1, 2]}}}
    write_plan(*planned(content, kd_output_dir=str(tmp_path / "mine")))
    with pytest.raises(UserError, match="--tune_resume"):
        planned(content, kd_output_dir=str(tmp_path / "mine"))


def test_a_cluster_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"127.0.0.1:1 .*--ray_address"):
        run_sweep("BPR", "tiny", sweep_file="sweep.yaml", ray_address="127.0.0.1:1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("resumed", [False, True])
def test_a_cluster_that_refuses_leaves_no_new_folder(resumed, planned, tmp_path, monkeypatch):
    @contextmanager
    def refusing(address):
        raise UserError("Cannot use the Ray cluster auto")
        yield

    folder = tmp_path / "sweep"
    plan, _ = planned({"space": {"kd_weight": {"choice": [1, 2]}}}, kd_output_dir=str(folder))
    if resumed:
        write_plan(plan, folder)
    monkeypatch.setattr("recbole_prmkd.tune.sweep.cluster", refusing)
    monkeypatch.setattr("recbole_prmkd.tune.sweep.plan_and_folder", lambda *_: (plan, folder))
    with pytest.raises(UserError, match="Cannot use"):
        run_sweep(ray_address="auto", resume=str(folder) if resumed else None)
    assert folder.exists() == resumed


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match="no sweep in"):
        run_sweep(resume=str(tmp_path))
    with pytest.raises(UserError, match="--tune_resume=FOLDER"):
        run_sweep(resume=True)


def test_an_ensemble_has_nothing_to_search(planned):
    with pytest.raises(UserError, match="kd=ensemble"):
        planned({"space": {"kd_weight": {"choice": [1, 2]}}}, kd="ensemble")


BOTH = ["UniSRec", "Recformer"]


@pytest.mark.parametrize(
    ("space", "wanted"),
    [
        ({"kd": {"choice": ["single", "mean"]}}, BOTH),
        ({"kd": {"choice": ["none", "single"]}}, ["UniSRec"]),
        (
            {"kd": {"choice": ["single"]}, "kd_teachers": {"choice": [["UniSRec"], ["Recformer"]]}},
            ["UniSRec", "Recformer"],
        ),
    ],
)
def test_teachers_of_all_trials_are_prepared(space, wanted, settings, tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"space": space}))
    given = settings(kd_teachers=BOTH)
    if "kd_teachers" in space:
        del given["kd_teachers"]
    plan, _ = plan_and_folder("SASRec", "tiny", None, given, str(file))
    assert for_all_trials(plan)["kd_teachers"] == wanted
