"""Folders that a later run may trust: complete, unchanged and of the right identity, or made anew with a reason."""

import json
import logging
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from safetensors import SafetensorError

from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import json_files, store

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
    json_files.write_sealed(folder / store.MANIFEST, manifest | {"identity": former})
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


def test_a_folder_of_the_former_schema_is_made_anew_with_the_reason(stored, tmp_path, caplog):
    manifest = json.loads((stored.path / store.MANIFEST).read_text())
    manifest.pop("checksum")
    store.write_json(stored.path / store.MANIFEST, manifest | {"schema": 1})
    assert store.find(tmp_path, "knowledge-A", IDENTITY) is None
    assert "its schema is 1, this version reads 2" in caplog.text and "it is made anew" in caplog.text


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("name", ["manifest.json", "items.npy", "weights.safetensors"])
def test_no_flipped_bit_is_used(name, stored, tmp_path):
    """Each bit of the manifest, notes included; 200 random bits of the larger files."""
    file = stored.path / name
    content = file.read_bytes()
    bits = range(8 * len(content))
    bits = bits if name == store.MANIFEST else np.random.default_rng(0).choice(bits, min(200, len(bits)), replace=False)
    for bit in bits:
        file.write_bytes(flipped(content, int(bit)))
        assert store.find(tmp_path, "knowledge-A", IDENTITY) is None, bit
    file.write_bytes(content)
    assert store.find(tmp_path, "knowledge-A", IDENTITY).notes == {"seconds": 1}


GARBAGE = [b"[]", b"null", b"3", b'"a"', b"", b"\xff\xfe\x00", b"[" * 100_000, b'{"a":' * 100_000, b'{"schema": 2}']
GARBAGE += [b'{"schema": 2, "identity": []}', b'{"schema": [], "identity": {}}', b"1" * 5000, b'{"schema": NaN}']


@pytest.mark.parametrize("content", GARBAGE, ids=lambda content: content[:12].decode("latin1"))
def test_a_manifest_of_anything_stops_no_run(content, stored, tmp_path, caplog):
    """Beside the wanted folder, and in its place."""
    foreign = tmp_path / "knowledge-A-0123456789abcdef"
    foreign.mkdir()
    (foreign / store.MANIFEST).write_bytes(content)
    other = {**IDENTITY, "text": "new"}
    assert store.find(tmp_path, "knowledge-A", other) is None
    assert f"{foreign} is not used" in caplog.text
    (stored.path / store.MANIFEST).write_bytes(content)
    assert store.find(tmp_path, "knowledge-A", IDENTITY) is None
    store.save(tmp_path, "knowledge-A", IDENTITY, {"items": np.zeros(1)})
    assert store.find(tmp_path, "knowledge-A", IDENTITY) is not None


@pytest.mark.parametrize("what", ["folder", "pipe", "nobody's file", "link to nothing"])
def test_what_lies_in_the_place_of_a_folder_or_manifest(what, tmp_path):
    folder = store.save(tmp_path, "knowledge-A", IDENTITY, {"items": np.zeros(1)}).path
    if what == "folder":
        (folder / store.MANIFEST).unlink()
        (folder / store.MANIFEST).mkdir()
    elif what == "pipe":
        (folder / store.MANIFEST).unlink()
        os.mkfifo(folder / store.MANIFEST)
    else:
        folder.rename(tmp_path / "away")
        folder.write_text("") if what == "nobody's file" else folder.symlink_to(tmp_path / "nowhere")
    assert store.find(tmp_path, "knowledge-A", IDENTITY) is None
    store.save(tmp_path, "knowledge-A", IDENTITY, {"items": np.zeros(1)})
    assert store.find(tmp_path, "knowledge-A", IDENTITY) is not None
    assert not list(tmp_path.glob(".part-*"))


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


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied"),
    ],
)
def test_weights_on_a_full_disk_are_one_sentence(error, tmp_path, monkeypatch):
    def full(_, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(UserError, match=r"Cannot write .*: .*(No space left|denied).*; free the disk"):
        store.save(tmp_path, "teacher-A", IDENTITY, {"weights": {"w": torch.ones(2)}})
    assert list(tmp_path.iterdir()) == []


def test_a_really_full_file_leaves_nothing(tmp_path):
    """The kernel's limit on the size of files, met by numpy, safetensors and JSON alike."""
    script = f"""
import resource, sys, torch, numpy as np
from pathlib import Path
from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import store
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
identity, root = store.identity(code="1.0"), Path({str(tmp_path)!r})
for files in ({{"a": np.zeros(9999)}}, {{"w": {{"w": torch.zeros(9999)}}}}, {{}}):
    try:
        store.save(root, "text", identity, files, {{"long": "x" * 9999}})
    except UserError as error:
        assert "Cannot write" in str(error) and "\\n" not in str(error), error
    else:
        sys.exit("written")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_any_error_while_writing_leaves_no_part(tmp_path):
    class Bad:
        def items(self):
            raise RuntimeError("a true mistake")

    with pytest.raises(RuntimeError, match="a true mistake"):
        store.save(tmp_path, "teacher-A", IDENTITY, {"weights": Bad()})
    with pytest.raises(TypeError):
        store.write_json(tmp_path / "a.json", {(1, 2): 3})
    assert list(tmp_path.iterdir()) == []


def test_a_complete_folder_is_read_where_nothing_can_be_written(stored, tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    for name in ("mkdir", "replace", "unlink", "utime"):
        monkeypatch.setattr(os, name, read_only)
    assert store.find(tmp_path, "knowledge-A", IDENTITY).notes == {"seconds": 1}


def test_digest_tells_apart():
    assert store.digest(["a", "b"]) != store.digest(["ab"]) != store.digest(["b", "a"])
    assert store.digest([torch.zeros(2)]) != store.digest([torch.zeros(1, 2)])
