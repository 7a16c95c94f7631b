"""What all trials of a sweep share, checked before Ray starts."""

import json
import os
import shutil
import sys
from contextlib import nullcontext
from unittest import mock

import pytest
import ray
import yaml
from conftest import write_tiny

import run_recbole_prmkd as command_line
from recbole_prmkd import UserError
from recbole_prmkd.data import atomic_files
from recbole_prmkd.storage.locks import alone
from recbole_prmkd.tune import sweep
from recbole_prmkd.tune.plan import write_plan
from recbole_prmkd.tune.sweep import plan_and_folder, run_sweep


@pytest.fixture
def planned(settings, tmp_path, monkeypatch):
    """Plan a sweep of this space, in which Ray must not start; what a test searches is not fixed."""
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: pytest.fail("Ray was started"))
    monkeypatch.chdir(tmp_path)

    def plan(space, model="SASRec", sweep=None, start=plan_and_folder, **more):
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"space": space, **(sweep or {})}))
        fixed = {key: value for key, value in settings(**more).items() if key not in space}
        return start(model, "tiny", None, fixed, str(file))

    return plan


def test_a_trial_of_another_process_finds_a_class_of_the_users_own(planned, tmp_path, monkeypatch):
    (tmp_path / "own_models.py").write_text(
        "from recbole.model.general_recommender.bpr import BPR\n\n\nclass OfAFile(BPR):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    plan, _ = planned({"learning_rate": {"choice": [0.1]}}, "own_models:OfAFile")
    assert plan.model == "own_models:OfAFile"  # the name alone is registered in this process only
    assert plan.config()["model"] == "OfAFile"


def test_a_setting_that_the_student_does_not_read_may_be_anything(planned):
    plan, _ = planned({"learning_rate": {"choice": [0.1]}}, pre_model_path=[[1], [2]])
    assert plan.settings["pre_model_path"] == [[1], [2]]


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_students_alone_and_distilled_ones_are_ranked_on_one_split(model, planned):
    plan, _ = planned({"kd": {"choice": ["none", "prmkd"]}}, model)
    alone, distilled = (plan.config({"kd": kd}) for kd in ("none", "prmkd"))
    assert alone["eval_args"] == distilled["eval_args"] and alone["metrics"] == distilled["metrics"]
    assert plan.settings["kd_protocol"] == "ranking"  # best.yaml has the settings


@pytest.mark.parametrize(
    ("space", "more"),
    [
        ({"kd": {"choice": ["mean", "prmkd"]}}, {}),
        ({"kd": {"choice": ["none"]}}, {}),
        ({"learning_rate": {"choice": [0.1]}}, {"kd": "none"}),
        ({"kd": {"choice": ["none", "prmkd"]}}, {"kd_protocol": "host"}),
    ],
)
def test_the_protocol_is_as_it_was_elsewhere(space, more, planned):
    assert planned(space, **more)[0].settings.get("kd_protocol") == more.get("kd_protocol")


LOSSES = {"kd_loss": {"choice": ["kl", "rd", "dllm2rec"]}}
GAMMAS = {f"kd_rank_by_{part}": 0 for part in ("confidence", "consistency")}


@pytest.mark.parametrize(
    ("space", "more", "sentence"),
    [
        (LOSSES, {}, "kd_loss holds .*kd_loss=(rd|dllm2rec) learns .*kd_candidates=teacher_top"),
        (LOSSES, {"kd_candidates": "teacher_top"}, None),
        ({**LOSSES, "kd_candidates": {"choice": ["batch", "both_top"]}}, {}, None),  # rd with batch fails alone
        ({"kd_loss": {"choice": ["rd", "kl"]}, "kd_candidates": {"choice": ["batch", "both_top"]}}, {}, None),
        ({"kd_weight": {"choice": [1, 2]}}, {"kd_loss": "rd"}, "^kd_loss=rd learns"),
        ({**LOSSES, "kd_candidates": {"choice": ["batch", "student_top"]}}, {}, "kd_loss holds"),
        ({"kd": {"choice": ["none", "prmkd", "rd"]}}, {"kd_loss": "rd"}, "kd holds 'prmkd'"),
        ({"kd": {"choice": ["none", "mean", "rd"]}}, {}, None),
        ({"kd_rank_by_position": {"choice": [0, 0.5]}}, {"kd": "dllm2rec", **GAMMAS}, "kd_rank_by_position holds 0,"),
        ({"kd_rank_by_position": {"uniform": [0, 0.5]}}, {"kd": "dllm2rec", **GAMMAS}, None),
        # A student alone uses no loss, so it does not make this one usable.
        ({"kd": {"choice": ["none", "prmkd"]}, "kd_loss": {"choice": ["kl", "rd"]}}, {}, "kd_loss holds 'rd'"),
    ],
)
def test_values_that_make_no_loss_are_rejected(space, more, sentence, planned):
    """A winner is trained again as a plain run, which refuses them."""
    expected = nullcontext() if sentence is None else pytest.raises(UserError, match=sentence)
    with expected:
        planned(space, **{"kd": "prmkd", **more})


HEAD = {"Alive": True, "Resources": {"CPU": 2.0}}
GPUS = {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 2.0}}
LOST = {"Alive": False, "Resources": {"CPU": 64.0}}


@pytest.mark.parametrize(
    ("resources", "nodes", "refused"),
    [
        ({"cpu": 2}, [HEAD], None),
        ({"cpu": 1, "gpu": 0.25}, [HEAD, GPUS], None),
        ({"cpu": 64}, [HEAD, LOST], "cpu: 64, gpu: 0, .*there is cpu: 2, gpu: 0"),
        ({"gpu": 0.25}, [HEAD], "gpu: 0.25.*lower resources"),
        ({"cpu": 2, "gpu": 1}, [HEAD, GPUS], "no node"),  # none has both
    ],
)
def test_more_than_any_node_has_is_refused_once_ray_is_up(resources, nodes, refused, planned, monkeypatch):
    plan, folder = planned({"kd_weight": {"choice": [1, 2]}}, sweep={"resources": resources}, kd="prmkd")
    monkeypatch.setattr("recbole_prmkd.tune.sweep.cluster", lambda address: nullcontext())
    monkeypatch.setattr("recbole_prmkd.tune.sweep.plan_and_folder", lambda *_: (plan, folder))
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr("recbole_prmkd.tune.sweep.run_logging", mock.Mock(side_effect=KeyboardInterrupt))  # far enough
    with pytest.raises(UserError, match=refused) if refused else pytest.raises(KeyboardInterrupt):
        run_sweep()
    assert folder.exists() == (refused is None)


@pytest.fixture
def begun(planned, tmp_path):
    """The folder of a sweep that was planned on data of its own, and that data's folder."""
    data = write_tiny(tmp_path / "data")
    more = {"kd": "prmkd", "data_path": str(data), "kd_output_dir": str(tmp_path / "sweep")}
    plan, folder = planned({"kd_weight": {"choice": [1, 2]}}, **more)
    write_plan(plan, folder)
    return folder, data / "tiny"


def resumed(folder):
    return plan_and_folder(None, None, None, None, None, resume=str(folder))


def test_a_sweep_goes_on_with_its_own_data_alone(begun):
    folder, data = begun
    plan, _ = resumed(folder)
    assert plan.data == atomic_files.digest(data, "tiny")
    with (data / "tiny.item").open("a") as file:
        file.write("i99\tanother thing\tb1\n")
    with pytest.raises(UserError, match="files of tiny have changed"):
        resumed(folder)


def test_a_sweep_of_an_earlier_version_says_so(begun, monkeypatch):
    """Before Ray reads its pickles there, which name modules that are no more."""
    folder, _ = begun
    content = json.loads((folder / "sweep.json").read_text()) | {"schema": "recbole_prmkd/sweep/1"}
    (folder / "sweep.json").write_text(json.dumps(content))
    (folder / "ray").mkdir()
    (folder / "ray" / "tuner.pkl").write_bytes(b"crecbole_prmkd.tune.handover\nHandover\n.")
    monkeypatch.setattr(sys, "argv", ["run_recbole_prmkd.py", f"--tune_resume={folder}"])
    with pytest.raises(SystemExit, match=r"begun by an earlier version.*: start a new sweep"):
        command_line.main()


def test_a_second_process_in_one_sweep_names_the_first(begun, monkeypatch):
    folder, _ = begun
    monkeypatch.setattr(sweep, "cluster", lambda address: nullcontext())
    before = {path.name for path in folder.iterdir()}
    with alone(folder), pytest.raises(UserError, match=rf"is in use by process {os.getpid()} on "):
        run_sweep(resume=str(folder))
    assert {path.name for path in folder.iterdir()} == before


def test_a_sweep_whose_data_are_gone_says_so(begun):
    folder, data = begun
    shutil.rmtree(data)
    with pytest.raises(UserError, match=r"no .*tiny.inter: put"):
        resumed(folder)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"trials": 9}, "--tune_trials"),
        ({"model": "SASRec"}, "--model"),
        ({"config_dict": {"shuffle": False}}, "which --shuffle cannot"),
        ({"config_dict": {"epochs": 2, "kd_output_dir": "elsewhere"}}, "which --epochs cannot"),
    ],
)
def test_options_beside_a_resumed_sweep_are_rejected(given, sentence, begun):
    named = {"model": None, "dataset": None, "config_file_list": None, "config_dict": None, "sweep_file": None}
    with pytest.raises(UserError, match=sentence):
        plan_and_folder(**{**named, **given}, resume=str(begun[0]))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tune=sweep.yaml", "--nproc=2"], "not --nproc"),
        (["--tune_resume=sweep", "--nproc=2"], "not --nproc"),
        (["--tune="], "--tune= is empty"),
        (["--tune_resume="], "--tune_resume= is empty"),
        (["--compare="], "--compare= is empty"),
    ],
)
def test_options_that_would_be_ignored_are_rejected(options, sentence, monkeypatch):
    def begun(*_, **__):
        raise AssertionError("a run began")

    monkeypatch.setattr(sys, "argv", ["run_recbole_prmkd.py", "--model=BPR", "--dataset=tiny", *options])
    monkeypatch.setattr(command_line, "run_recbole_prmkd", begun)
    monkeypatch.setattr("recbole_prmkd.tune.run_sweep", begun)
    with pytest.raises(SystemExit, match=sentence):
        command_line.main()


RANDOM = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}
IN_ORDER = {**RANDOM, "order": "TO"}
TIMED = {"inter": ["user_id", "item_id", "timestamp"]}


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"kd": "none"}, True),  # RecBole's own split of a general model
        ({"kd": "none", "eval_args": RANDOM}, True),
        ({"kd": "none", "eval_args": IN_ORDER, "load_col": TIMED}, False),
        ({"kd": "none", "kd_protocol": "ranking"}, False),
        ({"kd": "prmkd"}, False),
    ],
)
def test_a_seed_that_would_change_the_split_is_not_searched(more, refused, planned):
    with pytest.raises(UserError, match=r"seed cannot.*order: RO.*kd_protocol=ranking") if refused else nullcontext():
        planned({"seed": {"choice": [1, 2]}}, "BPR", **more)


@pytest.mark.parametrize(
    ("space", "refused"),
    [
        ({"learning_rate": {"choice": [0.1]}, "kd_weight": {"choice": [1, 2]}}, "kd_weight would change nothing"),
        ({"kd": {"choice": ["none"]}, "kd_dropout": {"choice": [0, 1]}}, "kd_dropout would change nothing"),
        ({"kd": {"choice": ["warm_start"]}, "kd_weight": {"choice": [0, 1]}}, "since kd is warm_start"),
        ({"kd": {"choice": ["warm_start"]}, "kd_item_init_std": {"choice": [0.1, 0.2]}}, None),
        ({"kd": {"choice": ["none", "mean"]}, "kd_weight": {"choice": [1, 2]}}, None),
        ({"kd_item_init": {"choice": ["none", "UniSRec"]}, "kd_item_init_std": {"choice": [0.1, 0.2]}}, None),
        ({"kd_shared_prefixes": {"choice": [True, False]}}, None),
    ],
)
def test_keys_of_distillation_are_not_searched_without_it(space, refused, planned):
    with pytest.raises(UserError, match=refused) if refused else nullcontext():
        planned(space)


@pytest.mark.parametrize(
    ("space", "more"),
    [
        ({"kd_weight": {"choice": [1, 2]}}, {"kd_guard": True}),
        ({"kd_weight": {"choice": [1, 2]}, "kd_guard": {"choice": [False, True]}}, {}),
    ],
)
def test_a_guard_has_no_use_in_a_sweep(space, more, planned):
    with pytest.raises(UserError, match="chooses its trials on validation, so kd_guard has no use there: leave it out"):
        planned(space, kd="prmkd", **more)


def test_trials_without_an_epoch_are_refused(planned):
    with pytest.raises(UserError, match="epochs to 1 or more"):
        planned({"kd_weight": {"choice": [1, 2]}}, kd="prmkd", epochs=0)


@pytest.mark.parametrize("visible", [None, "0,1", "2"])
@pytest.mark.parametrize("named", [None, "1"])
def test_ray_lends_all_gpus_but_where_gpu_id_names_some(named, visible, planned, monkeypatch):
    seen = []

    def started(*_, **__):
        seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        raise KeyboardInterrupt

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")  # put back at the end
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("recbole_prmkd.tune.sweep.cluster", started)
    space, sweep = {"kd_weight": {"choice": [1, 2]}}, {"resources": {"gpu": 0.5}}
    with pytest.raises(KeyboardInterrupt):
        planned(space, sweep=sweep, start=run_sweep, kd="prmkd", **({"gpu_id": named} if named else {}))
    assert seen == [named or visible]


def test_an_empty_folder_is_taken_and_one_with_other_files_is_not(planned, tmp_path):
    space, folder = {"kd_weight": {"choice": [1, 2]}}, tmp_path / "sweep"
    folder.mkdir()
    plan, taken = planned(space, kd="prmkd", kd_output_dir=str(folder))
    assert taken == folder
    write_plan(plan, folder)
    with pytest.raises(UserError, match=f"already: go on with --tune_resume={folder}"):
        planned(space, kd="prmkd", kd_output_dir=str(folder))
    with pytest.raises(UserError, match="already: name another"):  # there is no sweep to go on with
        planned(space, kd="prmkd", kd_output_dir=str(tmp_path))


def test_the_file_of_an_earlier_stage_is_found_from_any_folder(planned, tmp_path):
    (tmp_path / "stage.pth").touch()
    more = {"kd": "prmkd", "train_stage": "finetune", "pre_model_path": "stage.pth"}
    assert planned({"kd_weight": {"choice": [1, 2]}}, "S3Rec", **more)[0].settings["pre_model_path"] == str(
        tmp_path / "stage.pth"
    )
