"""RecBole's look-up gives a trainer that distils by itself, or refuses."""

import numpy as np
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
from recbole_prmkd.recbole_host.config import complete
from recbole_prmkd.teacher_cache.scores import CachedVectors, TeacherCache

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


def test_after_an_interruption_all_is_put_back_and_fit_goes_on(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, (train, valid, _) = by_hand(
        "BPR", settings, tmp_path, kd="prmkd", epochs=3, kd_curriculum="easy", kd_pacing_start=0.2, kd_pacing_length=2
    )
    shown, validate, epochs = list(vars(train)["dataset"]), trainer._valid_epoch, iter(range(2))

    def interrupted(*args, **kwargs):
        if next(epochs) == 1:
            raise KeyboardInterrupt
        return validate(*args, **kwargs)

    monkeypatch.setattr(trainer, "_valid_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(train, valid)
    assert "forward" not in vars(trainer.model) and EXAMPLE not in train._dataset.inter_feat
    assert list(vars(train)["dataset"]) == shown  # what the curriculum has left out is there again
    monkeypatch.setattr(trainer, "_valid_epoch", validate)
    trainer.resume_checkpoint(trainer.saved_model_file)
    trainer.fit(train, valid)
    assert [epoch["epoch"] for epoch in trainer.history] == [0, 1, 1, 2]


def test_a_stage_that_is_not_distilled_is_refused(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = {"train_stage": "pretrain", "pretrain_epochs": 1, "save_step": 1, "item_attribute": "brand"}
    columns = {**RANKED["load_col"], "item": ["item_id", "brand"]}
    more = {**stage, "load_col": columns, "train_neg_sample_args": None}
    trainer, (train, valid, _) = by_hand("S3Rec", settings, tmp_path, kd="prmkd", **more)
    with pytest.raises(UserError, match="not distilled"):
        trainer.fit(train, valid)


def test_recformer_as_student_follows_a_curriculum(settings, tiny_encoder):
    run = run_recbole_prmkd(
        "Recformer",
        "tiny",
        config_dict=settings(
            kd="prmkd",
            kd_text_encoder=str(tiny_encoder),
            kd_curriculum="easy",
            kd_pacing_start=0.5,
            kd_pacing_length=1,
        ),
    )
    assert [epoch["share"] for epoch in run["result"]["distillation"]][:2] == [0.5, 1]


@pytest.mark.parametrize("model", ["SASRec", "UniSRec"])
def test_a_config_of_recboles_own_has_the_preset(model, settings):
    given = settings(**RANKED, train_neg_sample_args=None, kd="dllm2rec", kd_top_items=32)
    config = complete(Config(model, "tiny", config_dict=given))
    assert config["kd_loss"] == "dllm2rec" and config["kd_candidates"] == "teacher_top"
    assert config["kd_top_items"] == 32  # the user's word, though it is the default's too


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


def test_a_teacher_cache_can_be_given(settings, tmp_path, monkeypatch):
    """Then no teacher is made: here of random vectors, by the numbers of the training examples."""
    monkeypatch.chdir(tmp_path)
    trainer, (train, valid, _) = by_hand("BPR", settings, tmp_path, kd="prmkd", kd_teacher_dir=str(tmp_path / "none"))
    rng = np.random.default_rng(0)
    items, histories = (
        rng.normal(size=(n, 4)).astype("float16") for n in (train._dataset.item_num, len(train._dataset))
    )
    teacher = CachedVectors("Own", 0.1, 0.05, torch.from_numpy(items), histories)
    trainer.teacher_cache = TeacherCache([teacher], torch.arange(len(items)), trainer.device)
    trainer.fit(train, valid, saved=False)
    assert trainer.history[0]["weight_Own"] == pytest.approx(1) and not (tmp_path / "none").exists()
