"""The kd_ keys: one table, strict checks, and presets that name legal keys."""

import pytest
import yaml

from recbole_prmkd.distil.baselines import BASELINES
from recbole_prmkd.distil.candidates import SOURCES
from recbole_prmkd.distil.losses import LOSSES
from recbole_prmkd.distil.pacing import ORDERS, PACING
from recbole_prmkd.distil.weighting import CONFIDENCE, CONSISTENCY
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import keys
from recbole_prmkd.teachers import TEACHERS


def test_every_default_is_legal_and_explained():
    for key, entry in keys.key_table().items():
        assert entry["meaning"], key
        assert keys.checked({key: entry["default"]}, TEACHERS) == {key: entry["default"]}


def test_choices_are_those_of_the_code():
    table = keys.key_table()
    assert set(table["kd_confidence"]["choices"]) == set(CONFIDENCE)
    assert set(table["kd_consistency"]["choices"]) == set(CONSISTENCY)
    assert set(table["kd_pacing"]["choices"]) == set(PACING)
    assert set(table["kd_curriculum"]["choices"]) == {"none", *ORDERS}
    assert set(table["kd_loss"]["choices"]) == {*LOSSES, *BASELINES}
    assert set(table["kd_candidates"]["choices"]) == set(SOURCES)


@pytest.mark.parametrize("kd", [kd for kd in keys.key_table()["kd"]["choices"] if kd not in {"none", "ensemble"}])
def test_presets_hold_legal_values(kd):
    preset = keys.preset(kd)
    assert preset and keys.checked(preset, TEACHERS) == preset


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kd_wieght": 1.0}, ["kd_wieght", "kd_weight"]),
        ({"KD_weight": 1.0}, ["KD_weight", "kd_weight"]),
        ({"kd_weight": -1}, ["kd_weight", "out of range", "[0,inf)"]),
        ({"kd_weight": "much"}, ["kd_weight", "a number"]),
        ({"kd_weight": True}, ["kd_weight", "a number"]),
        ({"kd_temperature": 0}, ["kd_temperature", "(0,inf)"]),
        ({"kd_pair_candidates": 2.5}, ["kd_pair_candidates", "whole number"]),
        ({"kd_history_mask": 1}, ["kd_history_mask", "true or false"]),
        ({"kd_max_rows": "some"}, ["kd_max_rows", "whole number", "or auto"]),
        ({"kd_max_candidates": "auto"}, ["kd_max_candidates", "whole number"]),
        ({"kd": "prmdk"}, ["prmdk", "prmkd"]),
        ({"kd_teachers": ["UniSrec"]}, ["UniSrec", "UniSRec"]),
        ({"kd_teachers": []}, ["kd_teachers", "list"]),
        ({"kd_teachers": ["UniSRec", "UniSRec"]}, ["twice"]),
        ({"kd_teachers": ["UniSrec_text"]}, ["UniSrec_text", "UniSRec"]),
        ({"kd_teachers": ["UniSRec_Text"]}, ["UniSRec_<word>", "small letters"]),
        ({"kd_teachers": ["UniSRec_a_b"]}, ["UniSRec_<word>"]),
        ({"kd_teachers": ["Recformer_max"]}, ["no part of the kind's own keys"]),  # has max_rows_per_epoch
        ({"kd_recformer_max_epochs": 3}, ["Recformer_max", "kd_recformer_max_epochs"]),
        ({"kd_item_init": "UniSRec_"}, ["kd_item_init", "UniSRec_<word>"]),
        ({"kd_unisrec_text_epoch": 3}, ["kd_unisrec_text_epoch", "did you mean"]),
        ({"kd_unisrec_text_epochs": "three"}, ["kd_unisrec_text_epochs", "whole number"]),
        ({"kd_unisrec_epoch": 3}, ["kd_unisrec_epoch", "kd_unisrec_epochs"]),
        ({"kd_unisrec_epochs": "three"}, ["kd_unisrec_epochs", "whole number"]),
        ({"kd_text_encoder": 1.5}, ["kd_text_encoder", "text"]),
    ],
)
def test_wrong_keys_and_values_stop_with_one_sentence(settings, words):
    with pytest.raises(UserError) as caught:
        keys.checked(settings, TEACHERS)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"kd_teachers": "UniSRec"}, ["UniSRec"]),
        ({"kd_text_fields": "[title, brand]"}, ["title", "brand"]),
        ({"kd_text_fields": "title,brand"}, ["title", "brand"]),
        ({"kd_text_fields": None}, None),
        ({"kd": None}, "none"),
        ({"kd_output_dir": 7}, "7"),
        ({"kd_output_dir": "none"}, "none"),
        ({"kd_weight": 1}, 1.0),
        ({"kd_max_rows": "auto"}, "auto"),
        ({"kd_max_rows": None}, None),
        ({"kd_shared_prefixes": None}, "auto"),
    ],
)
def test_what_a_shell_or_yaml_makes_of_a_value(given, wanted):
    (key,) = given
    assert keys.checked(given, TEACHERS)[key] == wanted


def test_teacher_settings_take_the_users_values():
    assert keys.teacher_settings("UniSRec", {"kd_unisrec_epochs": 3})["epochs"] == 3
    assert keys.teacher_settings("UniSRec", {})["hidden_size"] == 300


def test_a_further_teacher_of_a_kind_has_its_own_keys():
    given = {"kd_teachers": ["UniSRec", "UniSRec_text"], "kd_unisrec_text_epochs": 3, "kd_item_init": "UniSRec_text"}
    assert keys.checked(given, TEACHERS) == given
    assert keys.teacher_settings("UniSRec_text", given) == {**keys.teacher_settings("UniSRec", {}), "epochs": 3}
    assert keys.teacher_settings("UniSRec", given) == keys.teacher_settings("UniSRec", {})
    assert keys.checked({"kd_unisrec_text_seed": 7}, TEACHERS) == {"kd_unisrec_text_seed": 7}
    with pytest.raises(UserError, match="kd_vectors_seed"):  # nothing of it is trained
        keys.checked({"kd_vectors_seed": 7}, TEACHERS)
    found = keys.keys_of_teachers(
        [*given, "kd_unisrec_epochs", "kd_recformer_max_rows_per_epoch", "kd_weight"], TEACHERS
    )
    assert found == {
        "kd_unisrec_text_epochs": ("UniSRec_text", "kd_unisrec_epochs"),
        "kd_unisrec_epochs": ("UniSRec", "kd_unisrec_epochs"),
        "kd_recformer_max_rows_per_epoch": ("Recformer", "kd_recformer_max_rows_per_epoch"),
    }


def test_properties_are_found_in_a_checkout_and_in_a_wheel(tmp_path, monkeypatch):
    assert (keys.properties_dir() / "kd.yaml").is_file()
    package = tmp_path / "recbole_prmkd"
    (package / "properties").mkdir(parents=True)
    monkeypatch.setattr(keys, "__file__", str(package / "recbole_host" / "keys.py"))
    assert keys.properties_dir() == package / "properties"


def test_property_files_are_flat():
    for file in (keys.properties_dir() / "model").glob("*.yaml"):
        assert all(not isinstance(value, dict) for value in yaml.safe_load(file.read_text()).values()), file
