"""Input that somebody else has written, through the commands themselves: no code runs, no other file goes.

Single parts are tested in `test_bad_input`, `test_result`, `test_own_checkpoint` and `test_tune_distinct`.
"""

import json
import os
import pickle
import sys

import pytest
import torch
import yaml

import run_recbole_prmkd as command_line
from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.compare import cost
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.tune import plan, run_sweep, sweep


@pytest.fixture
def code(tmp_path):
    """A text that leaves a file when it is evaluated; that file."""
    proof = tmp_path / "proof"
    return f"__import__('pathlib').Path({str(proof)!r}).touch()", proof


class Evil:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("run", "option"),
        ("tune", "option"),
        ("tune", "settings"),
        ("compare", "option"),
        ("compare", "settings"),
    ],
)
def test_no_text_of_a_file_is_evaluated(command, where, code, settings, tmp_path, monkeypatch):
    text, proof = code
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"space": {"learning_rate": {"uniform": [0.1, 0.2]}}}))
    given = settings(use_gpu=False, **({"state": text, "my_key": text} if where == "settings" else {}))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    options = {
        "run": ["--model=BPR", "--dataset=nowhere"],
        "tune": ["--model=BPR", "--dataset=nowhere", f"--tune={tmp_path / 'sweep.yaml'}"],
        "compare": ["--compare=none,mean", "--models=BPR", "--datasets=nowhere", f"--tune={tmp_path / 'sweep.yaml'}"],
    }[command]
    more = [f"--my_key={text}"] if where == "option" else []
    monkeypatch.setattr(sys, "argv", ["run", *options, f"--config_files={tmp_path / 'config.yaml'}", *more])
    with pytest.raises(SystemExit):
        command_line.main()
    assert not proof.exists()


def test_no_text_of_a_sweeps_folder_is_evaluated(code, settings, tmp_path):
    text, proof = code
    fixed = {key: value for key, value in settings(kd="none").items() if key != "kd_output_dir"}
    content = {"schema": plan.SCHEMA, "model": "BPR", "dataset": "tiny", "settings": {**fixed, "my_key": text}}
    content |= {"sweep": {"space": {"learning_rate": {"uniform": [0.1, 0.2]}}}, "data": ""}
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"files of tiny have changed"):
        run_sweep(resume=str(tmp_path))
    assert not proof.exists()


def test_another_users_sweep_does_not_start(settings, tmp_path, monkeypatch):
    """Before anything of it is unpickled."""
    fixed = {key: value for key, value in settings(kd="none").items() if key != "kd_output_dir"}
    content = {"schema": plan.SCHEMA, "model": "BPR", "dataset": "tiny", "settings": fixed, "data": ""}
    content |= {"sweep": {"space": {"learning_rate": {"uniform": [0.1, 0.2]}}}}
    made = plan.Plan.model_validate({key: value for key, value in content.items() if key != "schema"})
    (tmp_path / "sweep.json").write_text(json.dumps({**content, "data": made.data_digest()}))

    def started(*_):
        raise AssertionError("Ray starts")

    monkeypatch.setattr(sweep, "cluster", started)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(UserError, match="belongs to another user"):
        run_sweep(resume=str(tmp_path))


def test_a_folder_keeps_its_name(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="none", epochs=1, kd_output_dir="0x10"))
    assert (tmp_path / "0x10" / "result.json").is_file() and not (tmp_path / "16").exists()


def test_a_students_file_runs_nothing(cpu_settings, tmp_path, monkeypatch):
    """As the cost of a comparison's cell is measured."""
    monkeypatch.setattr(cost, "BUDGET", 0.0)
    config = load_config("BPR", "tiny", config_dict=cpu_settings(kd="none"))
    for content in (pickle.dumps(Evil(str(tmp_path / "ran"))), None):
        file = tmp_path / "BPR.pth"
        file.write_bytes(content) if content else torch.save({"state_dict": Evil(str(tmp_path / "ran"))}, file)
        with pytest.raises(UserError, match=r"BPR\.pth is (damaged|rejected)"):
            cost.measure_costs(config, {"none": (config, file)}, tmp_path / "cost.json")
        assert not (tmp_path / "ran").exists()


def test_a_second_run_in_a_folder_ends_at_once(settings, tmp_path, monkeypatch):
    """It begins while the first one trains; the first one's result is its own."""
    from recbole.trainer import Trainer

    train_epoch, said = Trainer._train_epoch, []

    def train(self, *args, **named):
        if not said:
            said.append("")
            try:
                run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="none", epochs=1, seed=7))
            except UserError as error:
                said.append(str(error))
        return train_epoch(self, *args, **named)

    monkeypatch.setattr(Trainer, "_train_epoch", train)
    run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="none", epochs=2, seed=5))
    assert len(said) == 2 and "is in use by process" in said[1]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["student"]["epochs"] == 2


@pytest.mark.parametrize("name", ["../victim.pth", "../victim", "ABSOLUTE"])
def test_an_old_result_removes_no_other_file(name, settings, tmp_path):
    victim = tmp_path / name.removeprefix("../")
    victim.write_text("precious")
    given = settings(kd="none", epochs=1)
    run_recbole_prmkd("BPR", "tiny", config_dict=given)
    file = tmp_path / "out" / "result.json"
    content = json.loads(file.read_text())
    content["student"]["checkpoint"] = str(victim) if name == "ABSOLUTE" else name
    file.write_text(json.dumps(content))
    run_recbole_prmkd("BPR", "tiny", config_dict=given)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["BPR.pth", "result.json", "unfinished"])
def test_an_output_that_is_something_else_is_refused_before_training(name, settings, tmp_path, monkeypatch):
    from recbole.trainer import Trainer

    (tmp_path / "out").mkdir()
    if name == "unfinished":
        (tmp_path / "out" / name).write_text("precious")
    else:
        (tmp_path / "out" / name / "inner").mkdir(parents=True)
    trained = []
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: trained.append(1))
    with pytest.raises(UserError, match=name):
        run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="none", epochs=1))
    assert not trained and (tmp_path / "out" / name).exists()
