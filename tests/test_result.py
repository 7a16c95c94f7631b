"""A run's folder: complete or untrusted, and an older result stays until the new one is complete."""

import json

import pytest

from recbole_prmkd.errors import UserError
from recbole_prmkd.results.run_folder import output_folder, read_result, write_result


def test_content_moves_out_at_the_end(tmp_path):
    with output_folder(tmp_path / "out") as work:
        (work / "result.json").write_text("new")
        (work / "log").mkdir()
        assert not (tmp_path / "out" / "result.json").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log", "result.json"]


@pytest.mark.parametrize(("error", "left"), [(KeyboardInterrupt, True), (UserError, False)])
def test_an_interrupted_run_keeps_the_older_result(error, left, tmp_path):
    (tmp_path / "result.json").write_text("old")
    with pytest.raises(error), output_folder(tmp_path) as work:
        (work / "result.json").write_text("half")
        raise error("stop")
    assert (tmp_path / "result.json").read_text() == "old"
    assert (tmp_path / "unfinished").exists() == left
    with output_folder(tmp_path) as work:  # the next run clears what was left
        assert list(work.iterdir()) == []


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
