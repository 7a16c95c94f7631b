"""Dropout of a distilled student: every layer's, in training alone, and not where nothing is distilled."""

import pytest
from torch import nn

from recbole_prmkd import run_recbole_prmkd, training
from recbole_prmkd.students.dropout import scale_dropout


def test_every_layer_is_scaled():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2))
    model = nn.Sequential(nn.Dropout(0.5), inner, nn.Dropout(0.0))
    scale_dropout(model, 0.4)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == pytest.approx([0.2, 0.08, 0])


@pytest.mark.parametrize(
    ("settings_of_run", "wanted"), [({"kd": "mean"}, 0.2), ({"kd": "none"}, 0.5), ({"kd_weight": 0}, 0.5)]
)
def test_a_student_has_less_while_it_is_distilled(settings_of_run, wanted, settings, monkeypatch):
    seen = []

    def trained(config, prepared, trainer, *arguments, **named):
        seen.extend(m.p for m in trainer.model.modules() if isinstance(m, nn.Dropout))
        return train(config, prepared, trainer, *arguments, **named)

    train = training.train
    monkeypatch.setattr("recbole_prmkd.quick_start.train", trained)
    given = {"kd": "mean", "kd_dropout": 0.4, "hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5, **settings_of_run}
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(**given))
    assert seen and seen == pytest.approx([wanted] * len(seen))
