"""The pre-trained weights that come with the package: what they are, and when a run starts from them."""

import pytest
import torch
from safetensors.torch import load_file

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.encoder import encoder_digest
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.teachers import pretrained

FILE = pretrained.weights_file(pretrained.SHIPPED_FOLDER, "UniSRec")


def config_of(settings, **given):
    """With no key of UniSRec but those given: the settings of the tests make it small."""
    small = {key: value for key, value in settings().items() if not key.startswith(("kd_unisrec_", "kd_teachers"))}
    return load_config("SASRec", "tiny", config_dict={**small, "kd": "auto", **given})


def test_card_and_weights(minilm):
    card = pretrained.read_card(FILE)
    assert card["teacher"] == "UniSRec" and card["text_encoder"]["digest"] == encoder_digest(minilm)
    assert [entry["name"] for entry in card["datasets"]] == ["amazon18-games"]
    weights = load_file(FILE)
    assert FILE.stat().st_size < 8 << 20
    assert all(tensor.dtype is torch.float16 and tensor.isfinite().all() for tensor in weights.values())
    # Weights alone: nothing has a row for each item or user of the data that they were made from.
    assert all(max(tensor.shape) <= 384 for tensor in weights.values())


def test_auto_starts_from_them(cpu_settings, minilm):
    config = config_of(cpu_settings)
    assert config["kd_unisrec_checkpoint"] == "shipped"
    assert "starts from the weights of this package" in config.why_teachers[-1]
    assert pretrained.checkpoint_of("UniSRec", config)[0] == FILE


@pytest.mark.parametrize(
    "given",
    [
        {"kd_unisrec_checkpoint": "scratch"},
        {"kd_unisrec_hidden_size": 64},
        {"kd_unisrec_max_item_list_length": 10},
    ],
)
def test_the_user_decides(given, cpu_settings, minilm):
    assert config_of(cpu_settings, **given)["kd_unisrec_checkpoint"] in (None, "scratch")


def test_another_encoder_or_an_own_file_comes_first(cpu_settings, tiny_encoder, minilm, tmp_path):
    assert config_of(cpu_settings, kd_text_encoder=str(tiny_encoder))["kd_unisrec_checkpoint"] is None
    pretrained.write(tmp_path, "UniSRec", load_file(FILE), pretrained.read_card(FILE))
    assert config_of(cpu_settings, kd_teacher_dir=str(tmp_path))["kd_unisrec_checkpoint"] is None


def test_a_list_of_the_user_starts_from_them_where_named(settings, tmp_path):
    given = {"kd_teachers": ["UniSRec"], "kd_unisrec_checkpoint": "shipped", "kd_unisrec_hidden_size": 300}
    given |= {f"kd_unisrec_{key}": value for key, value in SIZES.items()}
    result = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", **given))["result"]
    assert result["teachers"]["UniSRec"]["checkpoint"].endswith("UniSRec.safetensors")


SIZES = {"n_layers": 2, "n_heads": 2, "inner_size": 256, "n_exps": 8, "max_item_list_length": 50}


def test_no_such_weights(cpu_settings):
    given = cpu_settings(kd="mean", kd_teachers=["UniM2Rec"], kd_unim2rec_checkpoint="shipped")
    with pytest.raises(UserError, match="only of UniSRec"):
        run_recbole_prmkd("SASRec", "tiny", config_dict=given)
