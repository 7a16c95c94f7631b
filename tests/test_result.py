"""A run's folder: complete or untrusted, and an older result stays until the new one is complete."""

import pytest

from recbole_prmkd import result as results
from recbole_prmkd.errors import UserError


def test_content_moves_out_at_the_end(tmp_path):
    with results.output_folder(tmp_path / "out") as work:
        (work / "result.json").write_text("new")
        (work / "log").mkdir()
        assert not (tmp_path / "out" / "result.json").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["log", "result.json"]


@pytest.mark.parametrize(("error", "left"), [(KeyboardInterrupt, True), (UserError, False)])
def test_an_interrupted_run_keeps_the_older_result(error, left, tmp_path):
    (tmp_path / "result.json").write_text("old")
    with pytest.raises(error), results.output_folder(tmp_path) as work:
        (work / "result.json").write_text("half")
        raise error("stop")
    assert (tmp_path / "result.json").read_text() == "old"
    assert (tmp_path / "unfinished").exists() == left
    with results.output_folder(tmp_path) as work:  # the next run clears what was left
        assert list(work.iterdir()) == []


def test_a_folder_without_a_valid_result_is_told(tmp_path):
    (tmp_path / "result.json").write_text('{"schema": "other"}')
    with pytest.raises(UserError, match="no result of schema"):
        results.read(tmp_path)
