"""RecBole's own look-ups find the teachers and the trainer, and its Config their properties."""

import pytest
import torch
from recbole.config import Config
from recbole.quick_start import run_recbole
from recbole.trainer import RecVAETrainer, Trainer
from recbole.utils import ModelType, get_model, get_trainer

import recbole_prmkd
from recbole_prmkd.distil.trainer import PRMKDTrainer, distillation_trainer
from recbole_prmkd.recbole_host import compat, registry
from recbole_prmkd.teachers import TEACHERS


@pytest.mark.parametrize("name", ["UniSRec", "Recformer", "UniM2Rec"])
def test_models_resolve(name):
    assert get_model(name) is TEACHERS[name]
    assert Config(name, "ml-100k")["temperature"] == pytest.approx(0.05 if name == "Recformer" else 0.07)


def test_trainer_resolves():
    assert get_trainer(ModelType.SEQUENTIAL, "PRMKD") is recbole_prmkd.PRMKDTrainer
    assert get_trainer(ModelType.SEQUENTIAL, "SASRec") is Trainer


def test_other_trainers_keep_their_loop():
    trainer = distillation_trainer(RecVAETrainer)
    assert issubclass(trainer, PRMKDTrainer) and issubclass(trainer, RecVAETrainer)
    assert distillation_trainer(Trainer) is recbole_prmkd.PRMKDTrainer


def test_changes_to_recbole_are_listed_and_idempotent():
    before = Trainer.evaluate
    changes = registry.install()
    assert len(changes) == 7 and changes == registry.install()
    assert Trainer.evaluate is before and not torch.is_anomaly_enabled()
    torch.autograd.set_detect_anomaly(True)  # a user's own choice stays
    compat.repair()
    assert torch.is_anomaly_enabled()
    torch.autograd.set_detect_anomaly(False)


def test_stock_run_trains_a_teacher_like_any_model(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_recbole(
        "UniSRec",
        "tiny",
        config_dict=settings(
            load_col={"inter": ["user_id", "item_id", "timestamp"]}, checkpoint_dir="saved", n_exps=2, epochs=3
        ),
    )
    assert set(run["test_result"]) >= {"ndcg@10", "recall@10"}
