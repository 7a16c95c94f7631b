"""RecBole's look-up gives a trainer that distils by itself, or refuses."""

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import MKRTrainer, RecVAETrainer, Trainer
from recbole.utils import get_model, get_trainer, init_seed

import recbole_prmkd
from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.examples import EXAMPLE
from recbole_prmkd.distil.trainer import PRMKDTrainer, distillation_trainer

RANKED = {
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "metrics": ["Recall", "NDCG"],
    "valid_metric": "NDCG@10",
}


def by_hand(model, settings, folder, **more):
    """A student, its trainer and its loaders, as a RecBole user builds them; no command line is read."""
    own = {"train_neg_sample_args": None} if model == "SASRec" else {}
    given = {**settings(checkpoint_dir=str(folder), **RANKED, **own), **more}
    config = Config(model, "tiny", config_dict=given)
    init_seed(config["seed"], config["reproducibility"])
    loaders = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], config["reproducibility"])
    net = get_model(model)(config, loaders[0]._dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], "PRMKD")(config, net), loaders


@pytest.mark.parametrize("model", ["SASRec", "BPR", "RecVAE"])
def test_the_trainer_of_the_registry_distils(model, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, (train, valid, _) = by_hand(model, settings, tmp_path, kd="prmkd")
    assert isinstance(trainer, recbole_prmkd.PRMKDTrainer) and isinstance(trainer, Trainer)
    assert isinstance(trainer, RecVAETrainer) == (model == "RecVAE")
    trainer.fit(train, valid, saved=False)
    assert [epoch["epoch"] for epoch in trainer.history] == [0, 1]
    assert all(epoch["kd_loss"] > 0 and "weight_UniSRec" in epoch for epoch in trainer.history)
    assert EXAMPLE not in train._dataset.inter_feat


def test_it_gives_the_weights_of_a_run(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, (train, valid, _) = by_hand("SASRec", settings, tmp_path, kd="prmkd")
    trainer.fit(train, valid)
    run = run_recbole_prmkd("SASRec", "tiny", config_dict={**settings(kd="prmkd"), **RANKED})
    ours = torch.load(trainer.saved_model_file, weights_only=False)["state_dict"]
    theirs = torch.load(tmp_path / "out" / run["result"]["student"]["checkpoint"], weights_only=False)["state_dict"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("given", "words"),
    [({}, "kd is none"), ({"kd": "ensemble"}, "kd is ensemble"), ({"kd": "prmkd", "kd_wieght": 3}, "kd_weight")],
)
def test_it_refuses_what_does_not_distil(given, words, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, (train, valid, _) = by_hand("BPR", settings, tmp_path, **given)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    with pytest.raises(UserError, match=words):
        trainer.fit(train, valid)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


class OwnLoop(Trainer):
    """A user's trainer that ignores the loss function it is given."""

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        return sum(float(self.model.calculate_loss(batch.to(self.device))) for batch in train_data)


def test_a_trainer_that_ignores_the_loss_is_refused_after_an_epoch(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, (train, valid, _) = by_hand("BPR", settings, tmp_path, kd="prmkd")
    own = distillation_trainer(OwnLoop)(trainer.config, trainer.model)
    with pytest.raises(UserError, match="without the loss function"):
        own.fit(train, valid, saved=False)


def test_other_trainers_keep_their_loop():
    assert distillation_trainer(Trainer) is PRMKDTrainer
    mixed = distillation_trainer(MKRTrainer)
    assert mixed.__mro__.index(MKRTrainer) < mixed.__mro__.index(PRMKDTrainer) < mixed.__mro__.index(Trainer)


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_it_can_fit_again_and_puts_the_loader_back(model, settings, tmp_path, monkeypatch):
    """After an exception too: the loader shows all of its examples, and the next fit prepares everything itself."""
    monkeypatch.chdir(tmp_path)
    trainer, (train, valid, _) = by_hand(model, settings, tmp_path, kd="prmkd")
    shown = list(vars(train)["dataset"])

    def stop(epoch, score):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(train, valid, saved=False, callback_fn=stop)
    assert list(vars(train)["dataset"]) == shown and EXAMPLE not in train._dataset.inter_feat
    trainer.fit(train, valid, saved=False)
    assert list(vars(train)["dataset"]) == shown and trainer.history[-1]["kd_loss"] > 0
