"""Folders that a later run may trust: complete, unchanged and of the right identity, or made anew with a reason."""

import json
import logging
import os
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from recbole_prmkd.errors import UserError
from recbole_prmkd.teacher_cache import store

IDENTITY = store.identity(code="1.0", examples="abc", text="def")


@pytest.fixture
def stored(tmp_path):
    files = {"items": np.arange(6.0).reshape(2, 3), "weights": {"w": torch.ones(2)}}
    return store.save(tmp_path, "knowledge-A", IDENTITY, files, {"seconds": 1})


def test_round_trip(stored, tmp_path):
    found = store.find(tmp_path, "knowledge-A", IDENTITY)
    assert np.array_equal(found.array("items"), np.arange(6.0).reshape(2, 3))
    assert torch.equal(found.weights("weights")["w"], torch.ones(2)) and found.notes == {"seconds": 1}
    assert isinstance(found.array("items"), np.memmap) and not found.array("items").flags.writeable


def test_what_differs_is_said(stored, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert store.find(tmp_path, "knowledge-A", {**IDENTITY, "text": "new"}) is None
    assert 'differs in text ("def", now "new"): it is made anew' in caplog.text
    assert store.find(tmp_path, "knowledge-B", IDENTITY) is None


@pytest.mark.parametrize("changed", [{"code": "1.1"}, {"torch": "2.0"}, {"transformers": "9.9"}])
def test_what_other_code_or_libraries_made_is_not_read(changed, stored, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert store.find(tmp_path, "knowledge-A", {**IDENTITY, **changed}) is None
    ((key, value),) = changed.items()
    assert f'differs in {key} ("{IDENTITY[key]}", now "{value}"): it is made anew' in caplog.text


def test_a_folder_of_before_there_were_versions_is_not_read(stored, tmp_path, caplog):
    former = {"examples": "abc", "text": "def"}
    manifest = json.loads((stored.path / store.MANIFEST).read_text())
    folder = stored.path.rename(tmp_path / f"knowledge-A-{store.digest([former])[:16]}")
    store.write_json(folder / store.MANIFEST, manifest | {"identity": former})
    with caplog.at_level(logging.INFO):
        assert store.find(tmp_path, "knowledge-A", IDENTITY) is None
    assert 'differs in code (null, now "1.0"), torch (null' in caplog.text


def test_versions_are_the_installed_ones():
    assert IDENTITY["torch"] == ".".join(torch.__version__.split(".")[:2])
    assert IDENTITY["transformers"] == ".".join(transformers.__version__.split(".")[:2])


def test_an_identity_without_versions_is_a_mistake(tmp_path):
    for call in (store.find, partial(store.save, files={})):
        with pytest.raises(ValueError, match=r"lacks code, torch, transformers: make it with store\.identity"):
            call(tmp_path, "knowledge-A", {"text": "def"})


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest", "identity"])
def test_a_harmed_folder_is_refused_with_the_reason(harm, stored, tmp_path, caplog):
    file = stored.path / "items.npy"
    if harm == "truncate":
        file.write_bytes(file.read_bytes()[:-8])
    elif harm == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    elif harm == "remove":
        file.unlink()
    elif harm == "manifest":
        (stored.path / store.MANIFEST).write_text("{")
    else:
        manifest = (stored.path / store.MANIFEST).read_text()
        (stored.path / store.MANIFEST).write_text(manifest.replace("abc", "xyz"))
    assert store.find(tmp_path, "knowledge-A", IDENTITY) is None
    assert "made anew" in caplog.text
    store.save(tmp_path, "knowledge-A", IDENTITY, {"items": np.zeros(1)})
    assert store.find(tmp_path, "knowledge-A", IDENTITY).array("items").shape == (1,)


def test_a_killed_write_leaves_nothing_to_trust(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(tmp_path, "knowledge-A", IDENTITY, {"items": np.zeros(1)})
    assert store.find(tmp_path, "knowledge-A", IDENTITY) is None
    monkeypatch.undo()
    assert store.save(tmp_path, "knowledge-A", IDENTITY, {"items": np.zeros(1)}).path.is_dir()


def test_two_processes_at_once(stored, tmp_path, monkeypatch):
    """Another one puts its folder there between our taking the old one away and putting ours."""
    replace, other = os.replace, np.full((2, 3), 7.0)

    def racing(source, target):
        replace(source, target)
        if str(target).endswith("-old"):
            monkeypatch.setattr(os, "replace", replace)
            store.save(tmp_path, "knowledge-A", IDENTITY, {"items": other}, {"seconds": 2})

    monkeypatch.setattr(os, "replace", racing)
    monkeypatch.setattr(os, "getpid", iter([1, 1, 2, 2, 1, 1]).__next__)
    made = store.save(tmp_path, "knowledge-A", IDENTITY, {"items": np.zeros((2, 3))}, {"seconds": 3})
    assert np.array_equal(made.array("items"), other) and made.notes == {"seconds": 2}  # the folder as it is
    assert [path.name for path in tmp_path.iterdir()] == [made.path.name]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="No space left"):
        store.save(tmp_path, "knowledge-A", IDENTITY, {"items": np.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_digest_tells_apart():
    assert store.digest(["a", "b"]) != store.digest(["ab"]) != store.digest(["b", "a"])
    assert store.digest([torch.zeros(2)]) != store.digest([torch.zeros(1, 2)])
