"""An encoding job that was stopped anywhere goes on after its last finished batch and gives the same bytes."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import encoding_jobs, json_files, store

NUMBER, IDENTITY = 20, store.identity(code="1.0", text="abc")
BATCHES = list(torch.randperm(18, generator=torch.Generator().manual_seed(1)).split(3))  # 18 and 19 are in none


def vectors_of(index):
    return np.sin(index.numpy()[:, None] + np.arange(4)).astype(np.float32)


def run(root, seen=None, stop_at=None, batches=BATCHES, number=NUMBER, identity=IDENTITY, **more):
    """One whole job, saved; `seen` gets the batches that were encoded, number `stop_at` raises."""
    seen = [] if seen is None else seen
    with encoding_jobs.resumable(root, "text", identity, number, label="Item texts", **more) as work:
        for index in work.pending(batches):
            if len(seen) == stop_at:
                raise KeyboardInterrupt
            seen.append(index.tolist())
            work.write(index, vectors_of(index))
        return np.array(store.save(root, "text", identity, {"vectors": work.array}).array("vectors"))


@pytest.fixture
def whole(tmp_path):
    """The array of an uninterrupted job."""
    return run(tmp_path / "whole")


def stop(root, after=4, **more):
    with pytest.raises(KeyboardInterrupt):
        run(root, stop_at=after, **more)


def left(root):
    return sorted(path.name for path in root.glob(".*"))


def test_uninterrupted(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        array = run(tmp_path)
    assert array.dtype == np.float32 and not array[18:].any()
    np.testing.assert_array_equal(array[:18], vectors_of(torch.arange(18)))
    assert left(tmp_path) == []
    assert "Item texts: 18 items in " in caplog.text and " items/s)" in caplog.text


@pytest.mark.parametrize("after", [1, 4, len(BATCHES) - 1])
def test_an_exception_costs_its_own_batch_alone(after, whole, tmp_path, caplog):
    stop(tmp_path, after)
    seen = []
    with caplog.at_level(logging.INFO):
        array = run(tmp_path, seen)
    assert seen == [index.tolist() for index in BATCHES[after:]]
    assert array.tobytes() == whole.tobytes() and left(tmp_path) == []
    assert f"Item texts: the encoding job resumes at item {3 * after} of 18." in caplog.text


def test_stopped_twice(whole, tmp_path):
    stop(tmp_path, 2)
    stop(tmp_path, 3)
    seen = []
    assert run(tmp_path, seen).tobytes() == whole.tobytes() and len(seen) == len(BATCHES) - 5


def test_a_finished_job_that_was_not_saved_encodes_nothing(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "save", None)
        with pytest.raises(TypeError):
            run(tmp_path)
    seen = []
    assert run(tmp_path, seen).tobytes() == whole.tobytes() and seen == []


@pytest.mark.parametrize("every", [-1, 3600])
def test_sigkill(every, whole, tmp_path):
    """Counted batches are kept; without a count (a job of less than COUNT_SECONDS seconds) it starts anew."""
    script = f"""
import os, signal, sys
sys.path[:0] = {[os.path.dirname(__file__)]!r}
from pathlib import Path
import test_encoding_jobs
test_encoding_jobs.encoding_jobs.COUNT_SECONDS = {every}
def vectors_of(index, given=test_encoding_jobs.vectors_of):
    if index.tolist() == {BATCHES[4].tolist()}:
        os.kill(os.getpid(), signal.SIGKILL)
    return given(index)
test_encoding_jobs.vectors_of = vectors_of
test_encoding_jobs.run(Path({str(tmp_path / "killed")!r}))
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    seen = []
    assert run(tmp_path / "killed", seen).tobytes() == whole.tobytes()
    assert seen == [index.tolist() for index in (BATCHES[4:] if every < 0 else BATCHES)]
    assert left(tmp_path / "killed") == []


def test_small_batches_are_counted_seldom(tmp_path, monkeypatch):
    counts = []
    monkeypatch.setattr(json_files, "write_sealed", lambda path, content: counts.append(content))
    with encoding_jobs.resumable(tmp_path, "text", IDENTITY, 1000, label="Item texts") as work:
        for index in work.pending(torch.arange(1000).split(1)):
            work.write(index, vectors_of(index))
    assert [len(count["checksums"]) for count in counts] == [1000]


def spoil(folder, how):
    array, progress = folder / "vectors.npy", folder / "progress.json"
    content = json_files.read_sealed(progress)
    checksums = content["checksums"]
    if how == "truncate":
        array.write_bytes(array.read_bytes()[:-8])
    elif how == "empty":
        array.write_bytes(b"")
    elif how == "dtype":
        np.save(array, np.load(array).view(np.int32))
    elif how == "shape":
        np.save(array, np.load(array).reshape(-1, 2))
    elif how == "json":
        progress.write_text("{")
    elif how == "no count":
        progress.unlink()
    else:
        wrong = {"high": checksums * 99, "none": [], "number": 4}
        json_files.write_sealed(progress, {**content, "checksums": wrong[how]})


@pytest.mark.parametrize("how", ["truncate", "empty", "dtype", "shape", "json", "no count", "high", "none", "number"])
def test_a_damaged_job_is_started_anew(how, whole, tmp_path, caplog):
    stop(tmp_path)
    spoil(next(tmp_path.glob(".pass-*")), how)
    seen = []
    with caplog.at_level(logging.INFO):
        assert run(tmp_path, seen).tobytes() == whole.tobytes()
    assert len(seen) == len(BATCHES) and "is not used: " in caplog.text


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damaged", [0, 2, 3])
def test_a_flipped_bit_costs_its_batch_and_those_after_it(damaged, whole, tmp_path, caplog):
    stop(tmp_path, 4)
    array = next(tmp_path.glob(".pass-*/vectors.npy"))
    entry = int(BATCHES[damaged][1])
    flip(array, 8 * (array.stat().st_size - (NUMBER - entry) * 16) + 3)  # in the first of its 4 numbers of 4 bytes
    seen = []
    assert run(tmp_path, seen).tobytes() == whole.tobytes() and left(tmp_path) == []
    assert seen == [index.tolist() for index in BATCHES[damaged:]]
    assert f"batch {damaged + 1} is damaged" in caplog.text


@pytest.mark.parametrize("name", ["progress.json", "vectors.npy"])
def test_no_flipped_bit_is_used(name, whole, tmp_path):
    """200 random bits: among them the header, batches that were finished and not, and entries of no batch."""
    stop(tmp_path / "left")
    folder = next((tmp_path / "left").glob(".pass-*"))
    for turn, bit in enumerate(np.random.default_rng(0).integers(8 * (folder / name).stat().st_size, size=200)):
        root = tmp_path / str(turn)
        shutil.copytree(folder, root / folder.name)
        flip(root / folder.name / name, int(bit))
        assert run(root).tobytes() == whole.tobytes(), bit


def test_another_count_of_batches_is_not_believed(whole, tmp_path):
    """By hand or by accident, without its checksum: the vectors of the batch would be zero."""
    stop(tmp_path)
    progress = next(tmp_path.glob(".pass-*/progress.json"))
    progress.write_text(progress.read_text().replace('"checksums": [', '"checksums": ["0123456789abcdef",'))
    assert run(tmp_path).tobytes() == whole.tobytes()


def test_another_number_dtype_or_batches_do_not_fit(tmp_path):
    for changed in ({"number": 30}, {"dtype": np.float16}, {"batches": BATCHES[::-1]}):
        stop(tmp_path)
        seen = []
        array = run(tmp_path, seen, **changed)
        assert len(seen) == len(BATCHES)
        np.testing.assert_allclose(array[:18], vectors_of(torch.arange(18)), atol=1e-3)


def test_two_identities_and_rebuild(whole, tmp_path):
    other = {**IDENTITY, "text": "xyz"}
    stop(tmp_path)
    stop(tmp_path, identity=other)
    assert len(left(tmp_path)) == 2
    seen = []
    assert run(tmp_path, seen).tobytes() == whole.tobytes() and len(seen) == len(BATCHES) - 4
    assert len(left(tmp_path)) == 1
    seen = []
    assert run(tmp_path, seen, identity=other, rebuild=True).tobytes() == whole.tobytes()
    assert len(seen) == len(BATCHES) and left(tmp_path) == []


def test_the_second_of_two_works_by_itself(whole, tmp_path, caplog):
    with encoding_jobs.resumable(tmp_path, "text", IDENTITY, NUMBER, label="Item texts") as work:
        for number, index in enumerate(work.pending(BATCHES)):
            if number == 2:
                with caplog.at_level(logging.INFO):
                    assert run(tmp_path).tobytes() == whole.tobytes()
                stop(tmp_path)
                assert len(left(tmp_path)) == 1
            work.write(index, vectors_of(index))
        assert work.array.tobytes() == whole.tobytes()
    assert "in a folder of its own" in caplog.text and left(tmp_path) == []


def test_a_lock_of_a_removed_folder_does_not_count(tmp_path, monkeypatch):
    """Between opening the lock file and locking it, the owner may finish and remove the folder."""
    import fcntl

    lock, turns = fcntl.flock, []

    def late(file, how):
        if not turns:
            next(tmp_path.glob(".pass-*/lock")).unlink()
        turns.append(file)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    run(tmp_path)
    assert len(turns) == 2 and left(tmp_path) == []


def test_folders_of_stale_jobs_are_removed(tmp_path):
    stop(tmp_path)
    stop(tmp_path, identity={**IDENTITY, "text": "xyz"})
    old, fresh = tmp_path.glob(".pass-*")
    week = time.time() - 8 * 24 * 3600
    os.utime(old, (week, week))
    run(tmp_path, identity={**IDENTITY, "code": "1.1"})
    assert left(tmp_path) == [fresh.name]


def test_nothing_to_encode(tmp_path):
    with encoding_jobs.resumable(tmp_path, "text", IDENTITY, 3, label="Item texts") as work:
        assert list(work.pending([])) == [] and work.array.shape == (3, 0)
    assert left(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    with pytest.raises(UserError, match="No space left"):
        run(tmp_path)
    assert left(tmp_path) == []


def test_vectors_of_another_shape_are_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="were wanted"),
        encoding_jobs.resumable(tmp_path, "text", IDENTITY, NUMBER, label="Item texts") as work,
    ):
        for index in work.pending(BATCHES):
            work.write(index, np.ones((1, 4), dtype=np.float32))


def test_equal_numbers_share_a_batch():
    batches = encoding_jobs.equal_together(torch.tensor([3, 0, -1, 1, 0, 2, 3, 3]), 2)
    assert [index.tolist() for index in batches] == [[1, 4, 3], [5, 0, 6, 7]]
    assert encoding_jobs.equal_together(torch.tensor([], dtype=torch.int64), 2) == []


def test_precision(monkeypatch):
    def of(wanted, device):
        return {"kd_encode_precision": wanted, "device": torch.device(device)}

    assert (
        encoding_jobs.precision(of("auto", "cpu")) == "float32"
        and encoding_jobs.precision_entry(of("auto", "cpu")) == {}
    )
    assert encoding_jobs.precision_entry(of("bfloat16", "cpu")) == {"precision": "bfloat16"}
    for supported, name in ((True, "bfloat16"), (False, "float16")):
        monkeypatch.setattr(torch, "cuda", SimpleNamespace(is_bf16_supported=lambda s=supported, **_: s))
        assert encoding_jobs.precision(of("auto", "cuda")) == name
        assert encoding_jobs.precision(of("float32", "cuda")) == "float32"
    linear = torch.nn.Linear(4, 4)
    with encoding_jobs.autocast(of("bfloat16", "cpu")):
        assert linear(torch.ones(1, 4)).dtype == torch.bfloat16
    with encoding_jobs.autocast(of("auto", "cpu")):
        assert linear(torch.ones(1, 4)).dtype == torch.float32
