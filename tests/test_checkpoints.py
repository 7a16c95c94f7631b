"""The checkpoint reader: every layout of the parity folder, and files that would run code."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from yaml.loader import FullLoader

from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.checkpoints import read_checkpoint

PARITY = Path(os.environ.get("PRMKD_PARITY", Path(__file__).parents[2] / "shared" / "parity"))
CHECKPOINTS = PARITY / "checkpoints"
needs_parity = pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason=f"no parity data in {CHECKPOINTS}")


def same(ours, official):
    assert ours.keys() == official.keys()
    for name, tensor in official.items():
        assert torch.equal(ours[name], tensor.to(ours[name].dtype)), name


@needs_parity
@pytest.mark.parametrize("name", ["unisrec_pickle.pth", "unisrec_pickle_recbole.pth", "unisrec_finetuned.pth"])
def test_unisrec_pickles_give_their_tensors(name):
    official = load_file(PARITY / "unisrec" / "weights.safetensors")
    ours = read_checkpoint(CHECKPOINTS / name)
    assert ours.keys() <= official.keys()
    assert ("item_embedding.weight" in ours) == ("finetuned" in name)
    same(ours, {key: official[key] for key in ours})


@needs_parity
def test_recformer_files_give_their_tensors():
    encoder = load_file(PARITY / "recformer" / "weights.safetensors")
    pretraining = load_file(PARITY / "recformer" / "weights_pretraining.safetensors")
    same(read_checkpoint(CHECKPOINTS / "recformer_ckpt.bin"), encoder)
    seqrec = read_checkpoint(CHECKPOINTS / "recformer_seqrec_ckpt.bin")
    same({key: seqrec[key] for key in pretraining}, pretraining)
    zero = read_checkpoint(CHECKPOINTS / "recformer_zero.bin")
    assert all(name.startswith("_forward_module.model.") for name in zero)
    words = read_checkpoint(CHECKPOINTS / "longformer_base.bin")
    same(words, {key: pretraining[key] for key in words})


@needs_parity
@pytest.mark.parametrize("name", ["malicious.pth", "malicious_eval.pth"])
def test_canaries_are_refused_and_create_no_file(name, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY_FILE", str(canary))
    # The switch that compat.py turns on while RecBole reads its own files must not matter.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UserError, match=r"refers to (posix\.system|__builtin__\.eval)"):
        read_checkpoint(CHECKPOINTS / name)
    assert not canary.exists()


class Forged:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("function", [exec, os.system, pickle.loads, __import__, getattr, torch.load])
def test_any_other_name_is_refused(function, protocol, tmp_path):
    file = tmp_path / "forged.pth"
    torch.save({"state_dict": {"a": torch.ones(2)}, "config": Forged(function, "x")}, file, pickle_protocol=protocol)
    with pytest.raises(UserError, match="rejected because it refers to"):
        read_checkpoint(file)


def test_a_part_of_a_listed_name_is_refused(tmp_path):
    file = tmp_path / "forged.pth"
    torch.save({"config": Forged(FullLoader.__init__, None, "")}, file, pickle_protocol=4)
    with pytest.raises(UserError, match=r"refers to yaml\.loader\.FullLoader\.__init__,"):
        read_checkpoint(file)


def test_tensor_cannot_leave_its_storage(tmp_path):
    file, reads_too_far = tmp_path / "forged.pth", (1 << 20,)
    rebuild = torch._utils._rebuild_tensor_v2
    storage = torch.ones(4).storage()
    forged = Forged(rebuild, storage, 0, reads_too_far, (1,), False, {})
    torch.save({"config": Listed(), "state_dict": {"a": forged}}, file)
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(file)


class Listed:
    """Pickles under a listed name, so that torch's own reader passes the file on."""

    def __reduce__(self):
        return (FullLoader, ("",))


def test_views_and_shared_storages_are_read_right(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    weights = {"whole": base, "part": base[1:, ::2].T, "half": base.half(), "none": torch.empty(0)}
    torch.save({"config": Listed(), "state_dict": weights}, tmp_path / "views.pth", pickle_protocol=4)
    same(read_checkpoint(tmp_path / "views.pth"), weights)


def test_plain_files(tmp_path):
    weights = {"a": torch.ones(2, 3), "n": torch.arange(3)}
    save_file(weights, tmp_path / "a.safetensors")
    torch.save(weights, tmp_path / "a.bin")
    torch.save({"state_dict": weights, "epoch": 1}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.bin", "b.pth"):
        same(read_checkpoint(tmp_path / name), weights)


@pytest.mark.parametrize("name", ["absent.pth", "absent.safetensors", "text.pth", "text.safetensors", "empty.pth"])
def test_unreadable_files_are_one_sentence(name, tmp_path):
    (tmp_path / "text.pth").write_text(json.dumps({"no": "tensors"}))
    (tmp_path / "text.safetensors").write_text("no tensors")
    torch.save({"epoch": 1}, tmp_path / "empty.pth")
    with pytest.raises(UserError) as raised:
        read_checkpoint(tmp_path / name)
    assert name in str(raised.value) and "\n" not in str(raised.value)
