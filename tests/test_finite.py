"""A loss that is no finite number ends a run with one sentence: which term, where, and what to change."""

import pytest
import torch

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.distil.trainer import PRMKDTrainer
from recbole_prmkd.errors import NotFinite


@pytest.mark.parametrize("model", ["SASRec", "LightGCN", "RecVAE"])
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"kd_weight": 1e308}, ["epoch 0, batch 0, by its kd_loss (own loss", "lower kd_weight (now 1e+308)"]),
        ({"learning_rate": 1e30}, ["own loss", "lower learning_rate (now 1e+30)"]),
        ({"kd_temperature": 1e308}, ["single precision", "kd_temperature (now 1e+308)"]),
        ({"weight_decay": 1e300}, ["single precision", "weight_decay (now 1e+300)"]),
        ({"kd_unisrec_learning_rate": 1e30}, ["UniSRec", "lower kd_unisrec_learning_rate (now 1e+30)"]),
        ({"kd_unisrec_learning_rate": 1e308}, ["loss of UniSRec", "lower kd_unisrec_learning_rate (now 1e+308)"]),
        ({"kd_unisrec_temperature": 1e-300}, ["loss of UniSRec", "epoch 0", "kd_unisrec_temperature (now 1e-300)"]),
        ({"clip_grad_norm": {"max_norm": float("nan")}}, ["by its own loss", "clip_grad_norm (now {'max_norm': nan})"]),
        ({"kd": "none", "learning_rate": 1e30}, ["own loss: lower learning_rate (now 1e+30)."]),
    ],
)
def test_extremes_end_in_a_sentence(model, more, words, settings, tmp_path):
    own = {"train_neg_sample_args": None} if model == "RecVAE" else {}
    given = settings(**{"kd": "prmkd", "kd_protocol": "ranking", "train_batch_size": 32, **own, **more})
    with pytest.raises(UserError) as caught:
        run_recbole_prmkd(model, "tiny", config_dict=given)
    assert all(word in str(caught.value) for word in words)
    assert not (tmp_path / "out" / "result.json").exists()


def breaking(monkeypatch, epoch, batch):
    """Own losses of NaN from this batch on."""
    compute, counted = PRMKDTrainer.compute_loss, {}

    def broken(self, loss, interaction):
        number = counted[self._epoch_seen] = counted.get(self._epoch_seen, -1) + 1
        factor = float("nan") if (self._epoch_seen, number) == (epoch, batch) else 1.0
        return compute(self, lambda *given: loss(*given) * factor, interaction)

    monkeypatch.setattr(PRMKDTrainer, "compute_loss", broken)


def test_what_was_finished_before_is_kept(settings, tmp_path, monkeypatch):
    """Epoch and batch are those of the fault; the best weights so far stay in unfinished/, as the sentence says."""
    breaking(monkeypatch, epoch=2, batch=1)
    given = settings(kd="prmkd", epochs=4, train_batch_size=64, kd_every=1)
    with pytest.raises(
        NotFinite, match=r"became nan in epoch 2, batch 1, by its own loss \(own loss nan, kd_loss [\d.]+\)"
    ):
        run_recbole_prmkd("BPR", "tiny", config_dict=given)
    kept = torch.load(tmp_path / "out" / "unfinished" / "BPR.pth", weights_only=False)
    assert kept["epoch"] in (0, 1)
    assert all(torch.isfinite(weight).all() for weight in kept["state_dict"].values())


def test_weights_that_the_last_batch_broke_are_no_result(settings, tmp_path):
    """No batch follows whose loss would show it."""
    given = {"epochs": 1, "train_batch_size": 4096, "learning_rate": 1e38, "learner": "sgd", "eval_step": 0}
    with pytest.raises(NotFinite, match="weight of BPR"):
        run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", kd_weight=1e9, **given))
    assert not (tmp_path / "out" / "result.json").exists()
