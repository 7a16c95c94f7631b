"""Dropout of a distilled student: every layer's, in training alone, and not where nothing is distilled."""

import pytest
from torch import nn

from recbole_prmkd import run_recbole_prmkd, training
from recbole_prmkd.students.layers import scaled_dropout


def test_every_layer_is_scaled_and_put_back():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2))
    model = nn.Sequential(nn.Dropout(0.5), inner, nn.Dropout(0.0))

    def probabilities():
        return [module.p for module in model.modules() if isinstance(module, nn.Dropout)]

    with pytest.raises(KeyboardInterrupt), scaled_dropout(model, 0.4):
        assert probabilities() == pytest.approx([0.2, 0.08, 0])
        raise KeyboardInterrupt
    assert probabilities() == [0.5, 0.2, 0]


@pytest.mark.parametrize(
    ("settings_of_run", "wanted"), [({"kd": "mean"}, 0.2), ({"kd": "none"}, 0.5), ({"kd_weight": 0}, 0.5)]
)
def test_a_student_has_less_while_it_is_distilled(settings_of_run, wanted, settings, monkeypatch):
    seen, after = [], []

    def trained(config, prepared, trainer, *arguments, **named):
        layers = [module for module in trainer.model.modules() if isinstance(module, nn.Dropout)]
        for layer in layers:
            layer.register_forward_pre_hook(lambda layer, _: seen.append(layer.p) if layer.training else None)
        result = train(config, prepared, trainer, *arguments, **named)
        after.extend(layer.p for layer in layers)
        return result

    train = training.train
    monkeypatch.setattr("recbole_prmkd.quick_start.train", trained)
    given = {"kd": "mean", "kd_dropout": 0.4, "hidden_dropout_prob": 0.5, "attn_dropout_prob": 0.5, **settings_of_run}
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(**given))
    assert seen and seen == pytest.approx([wanted] * len(seen))
    assert after and after == [0.5] * len(after)
