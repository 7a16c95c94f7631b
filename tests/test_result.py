"""A run's folder: complete or untrusted, and an older result stays until the new one is complete."""

import json
import os
import subprocess
import sys

import pytest

from recbole_prmkd.errors import UserError
from recbole_prmkd.results.run_folder import output_folder, read_result, write_result


def test_content_moves_out_at_the_end(tmp_path):
    with output_folder(tmp_path / "out") as work:
        (work / "result.json").write_text("new")
        (work / "log").mkdir()
        assert not (tmp_path / "out" / "result.json").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log", "result.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, ZeroDivisionError, SystemExit])
@pytest.mark.parametrize("trained", [False, True])
def test_an_interrupted_run_keeps_the_older_result(error, trained, tmp_path):
    """It leaves its log where it has begun to train, unless it was rejected, and else nothing."""
    (tmp_path / "result.json").write_text("old")
    with pytest.raises(error), output_folder(tmp_path) as work:
        (work / "log.log").write_text("why")
        (work / "result.json").write_text("half")
        if trained:
            (work / "tensorboard").mkdir()
            (work / "tensorboard" / "events.out.tfevents.1").write_text("curve")
        raise error("stop")
    assert (tmp_path / "result.json").read_text() == "old"
    assert (tmp_path / "unfinished" / "log.log").exists() == (trained and error is not UserError)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("result.json", "unfinished")] == []
    with output_folder(tmp_path) as work:  # the next run clears what was left
        assert list(work.iterdir()) == []


HOLD = """
import sys
from pathlib import Path
from recbole_prmkd.results.run_folder import output_folder
with output_folder(Path(sys.argv[1])) as work:
    (work / "mine").write_text("mine")
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_run_in_one_folder_names_the_first(tmp_path):
    out = tmp_path / "out"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], **pipes) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=rf"{out} is in use by process {first.pid} on .*--kd_output_dir"):
            output_folder(out).__enter__()
        assert (out / "unfinished" / "mine").exists()
        with output_folder(out, "unfinished-UniSRec"):  # a teacher is pre-trained beside
            pass
        first.communicate("\n")
    assert [path.name for path in out.iterdir()] == ["mine"]
    with output_folder(out):
        pass


def test_a_killed_run_leaves_the_folder_free(tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as first:
        assert first.stdout.readline() == "held\n"
        first.kill()
    with output_folder(tmp_path) as work:
        assert list(work.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../victim.pth", "/victim.pth", "a/b.pth", "..", "notes.txt", "result.json", "", "x\\y.pth"]
)
def test_a_name_in_an_old_result_removes_no_other_file(name, tmp_path, made_up_run):
    out, victim = tmp_path / "out", tmp_path / "victim.pth"
    for file in (victim, out / "notes.txt", out / "a" / "b.pth"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("precious")
    made = made_up_run("a", "BPR", "mean", 1, 0.1)
    made.student.checkpoint = str(victim) if name == "/victim.pth" else name
    write_result(out, made)
    with pytest.raises(UserError, match="no file beside it"):
        read_result(out)
    with output_folder(out) as work:
        (work / "result.json").write_text("new")
    assert (out / "result.json").read_text() == "new"
    assert all(file.read_text() == "precious" for file in (victim, out / "notes.txt", out / "a" / "b.pth"))


@pytest.mark.parametrize("name", ["BPR.pth", "result.json", "distillation.svg", "log", "tensorboard"])
def test_what_has_the_name_of_an_output_is_refused_before_the_run(name, tmp_path):
    (tmp_path / name).write_text("") if name in ("log", "tensorboard") else (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=rf"{name} is .*move it away"):
        output_folder(tmp_path, files=("result.json", "distillation.svg", "BPR.pth")).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_pretraining_leaves_a_runs_result(tmp_path, made_up_run):
    write_result(tmp_path, made_up_run("a", "BPR", "mean", 1, 0.1))
    with output_folder(tmp_path, "unfinished-UniSRec", ["UniSRec.safetensors"], []) as work:
        (work / "UniSRec.safetensors").write_text("weights")
    assert read_result(tmp_path).student.model == "BPR"


def test_a_finished_run_that_cannot_be_moved_out_is_kept(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(30, "Read-only file system")

    with pytest.raises(UserError, match="has ended, but its files cannot be moved"), output_folder(tmp_path) as work:
        (work / "SASRec.pth").write_text("weights")
        monkeypatch.setattr(os, "replace", full)
    assert (tmp_path / "unfinished" / "SASRec.pth").read_text() == "weights"


@pytest.mark.parametrize("content", [b"[]", b"null", b"", b"\xff\xfe", b"[" * 100_000, b'{"student": 3}'])
def test_a_result_of_anything_is_one_sentence(content, tmp_path):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(UserError, match="no result of schema") as caught:
        read_result(tmp_path)
    assert "\n" not in str(caught.value)
    with output_folder(tmp_path) as work:  # and stands in no run's way
        (work / "result.json").write_text("new")
    assert (tmp_path / "result.json").read_text() == "new"


def test_what_is_not_the_runs_own_stays(tmp_path, made_up_run):
    made = made_up_run("a", "BPR", "mean", 1, 0.1)
    made.student.checkpoint = "BPR.pth"
    for name in ("BPR.pth", "distillation.svg", "test_ranks.npz", "notes.txt"):
        (tmp_path / name).write_text("old")
    write_result(tmp_path, made)
    (tmp_path / "log" / "BPR").mkdir(parents=True)
    (tmp_path / "log" / "BPR" / "mine.log").write_text("mine")
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events.out.tfevents.1.host.2.0").write_text("old")
    with output_folder(tmp_path) as work:
        (work / "log" / "BPR").mkdir(parents=True)
        (work / "log" / "BPR" / "new.log").write_text("new")
        (work / "result.json").write_text("new")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "log/BPR/mine.log",
        "log/BPR/new.log",
        "notes.txt",
        "result.json",
    ]


def test_a_rejected_run_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), output_folder(tmp_path / "out"):
        raise UserError("no")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_valid_result_is_an_error(tmp_path):
    (tmp_path / "result.json").write_text('{"schema": "other"}')
    with pytest.raises(UserError, match="no result of schema"):
        read_result(tmp_path)


def test_a_result_without_the_optional_fields_is_readable(tmp_path, made_up_run):
    """As an earlier version wrote it; every field that came later has a default."""
    content = made_up_run("a", "BPR", "mean", 1, 0.1, teachers={"UniSRec": 0.2}).model_dump(mode="json", by_alias=True)
    for part, key in (
        *((content, key) for key in ("threads", "peak_memory_mb", "commit")),
        (content["student"], "valid_scores"),
        *((content["teachers"]["UniSRec"], key) for key in ("peak_memory_mb", "checkpoint")),
    ):
        del part[key]
    (tmp_path / "result.json").write_text(json.dumps(content))
    run = read_result(tmp_path)
    assert run.student.test["ndcg@10"] == 0.1 and run.student.valid_scores == [] and run.commit is None
