"""One training step: which files it enters, and that it leaves the model as it found it."""

import sys
from pathlib import Path

import pytest
import torch
from recbole.utils import get_model

import recbole_prmkd
from recbole_prmkd import training
from recbole_prmkd.distil.trainer import PRMKDTrainer
from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students.layers import running_statistics_kept

PACKAGE = Path(recbole_prmkd.__file__).parent
STEP = {
    "distil/trainer.py",
    "distil/objective.py",
    "distil/candidates.py",
    "distil/weighting.py",
    "distil/losses.py",
    "students/adapter.py",
    "students/windows.py",
    "teacher_cache/scores.py",
}


def files_of_second_step(config, folder, monkeypatch):
    """Files of the package that the second step of a training enters, and its calls into them."""
    prepared = prepare(config, Steps())
    trainer = training.make_trainer(config, prepared, folder)
    entered: list[str] = []

    def trace(frame, event, argument):
        file = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in file.parents:
            entered.append(str(file.relative_to(PACKAGE)))

    compute_loss, steps = PRMKDTrainer.compute_loss, []

    def traced(self, loss, batch):
        steps.append(1)
        if len(steps) != 2:
            return compute_loss(self, loss, batch)
        sys.setprofile(trace)
        try:
            return compute_loss(self, loss, batch)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(PRMKDTrainer, "compute_loss", traced)
    training.train(config, prepared, trainer, saved=False)
    return entered


def test_a_step_is_followed_in_eight_files(settings, tmp_path, monkeypatch):
    """So that the step cannot grow unseen: the method in four files, and what it is given in four more."""
    config = load_config("SASRec", "tiny", config_dict=settings(kd="prmkd_plus", train_batch_size=64))
    entered = files_of_second_step(config, tmp_path, monkeypatch)
    extra = {"teacher_cache/top_items.py"}  # a look-up of one line in what was stored before the training
    assert {*entered} - extra == STEP, {*entered} ^ STEP


@pytest.mark.parametrize("model", ["SASRec", "BERT4Rec", "BPR", "LightGCN", "DeepFM", "MultiVAE", "RecVAE", "NCL"])
def test_a_student_is_as_before_after_its_training(model, settings, tmp_path):
    if model == "NCL":
        pytest.importorskip("faiss")
    more = {"num_clusters": 4} if model == "NCL" else {}
    config = load_config(model, "tiny", config_dict=settings(kd="prmkd_plus", kd_item_init="none", epochs=1, **more))
    prepared = prepare(config, Steps())
    trainer = training.make_trainer(config, prepared, tmp_path)
    student = trainer.model
    dropout = [module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)]
    training.train(config, prepared, trainer, saved=False)
    assert not {name for name, value in vars(student).items() if callable(value) and name in dir(get_model(model))}
    assert [module.p for module in student.modules() if isinstance(module, torch.nn.Dropout)] == dropout
    assert trainer.history and trainer.history[0]["kd_loss"] > 0


def test_the_kd_loss_moves_no_running_statistics(settings, tmp_path):
    """NFM normalises by the batch: its statistics are those of its own training alone."""
    base = {"dropout_prob": 0.0, "epochs": 1, "learning_rate": 0.0, "kd_protocol": "ranking"}

    def statistics(kd):
        config = load_config("NFM", "tiny", config_dict=settings(kd=kd, kd_curriculum="none", **base))
        prepared = prepare(config, Steps())
        trainer = training.make_trainer(config, prepared, tmp_path)
        training.train(config, prepared, trainer, saved=False)
        return {
            name: value for name, value in trainer.model.state_dict().items() if "running" in name or "num_" in name
        }

    alone, distilled = statistics("none"), statistics("prmkd")
    assert alone and all(torch.equal(alone[name], distilled[name]) for name in alone)


def test_batch_norm_still_normalises_by_the_batch():
    net = torch.nn.BatchNorm1d(3).train()
    batch = torch.randn(8, 3) * 5 + 2
    wanted = torch.nn.BatchNorm1d(3).train()(batch)
    with running_statistics_kept(net):
        assert torch.equal(net(batch), wanted)
    assert torch.equal(net.running_mean, torch.zeros(3)) and int(net.num_batches_tracked) == 0
    net(batch)
    assert int(net.num_batches_tracked) == 1
