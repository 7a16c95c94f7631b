"""The card of a pre-trained teacher: whole, or refused; a file of someone else's is none of ours."""

import json

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from recbole_prmkd import UserError
from recbole_prmkd.teachers import pretrained

CARD = {"datasets": [{"name": "a"}], "text_encoder": {"name": "e", "digest": "0"}, "in_batch_accuracy": 0.5}


@pytest.fixture
def file(tmp_path):
    pretrained.write(tmp_path, "UniSRec", {"w": torch.ones(40)}, CARD)
    return pretrained.weights_file(tmp_path, "UniSRec")


def test_round_trip(file):
    card = pretrained.read_card(file)
    assert card["teacher"] == "UniSRec" and {key: card[key] for key in CARD} == CARD


@pytest.mark.parametrize("name", ["UniSRec.json", "UniSRec.safetensors"])
def test_no_flipped_bit_is_used(name, file):
    """Each bit of the card, 200 random bits of the weights."""
    changed = file.with_name(name)
    content = changed.read_bytes()
    bits = np.arange(8 * len(content))
    for bit in bits if name.endswith("json") else np.random.default_rng(0).choice(bits, 200, replace=False):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        changed.write_bytes(flipped)
        with pytest.raises(UserError, match="pre-train"):
            pretrained.read_card(file)


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"", b"\xff\xfe", b"[" * 100_000, b'{"sha256": "of another tool"}']
)
def test_a_file_of_someone_elses_is_no_card(content, file):
    file.with_suffix(".json").write_bytes(content)
    assert pretrained.read_card(file) is None


@pytest.mark.parametrize("lacking", ["sha256", "teacher", "datasets", "text_encoder"])
def test_a_card_of_the_former_schema_is_read_and_one_with_a_gap_refused(lacking, file):
    path = file.with_suffix(".json")
    card = json.loads(path.read_text()) | {"schema": "recbole_prmkd/pretrained/1"}
    del card["checksum"]
    path.write_text(json.dumps(card))
    assert pretrained.read_card(file)["in_batch_accuracy"] == 0.5
    del card[lacking]
    path.write_text(json.dumps(card))
    with pytest.raises(UserError, match=rf"is damaged \('{lacking}'\)"):
        pretrained.read_card(file)


def test_a_full_disk_keeps_the_former_teacher_and_leaves_no_part(file, tmp_path, monkeypatch):
    def full(_, path):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(pretrained, "save_file", full)
    with pytest.raises(UserError, match=r"Cannot write .*UniSRec.safetensors: .*No space left"):
        pretrained.write(tmp_path, "UniSRec", {"w": torch.zeros(1)}, CARD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["UniSRec.json", "UniSRec.safetensors"]
    assert pretrained.read_card(file) is not None
