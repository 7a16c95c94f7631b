"""Plans and measurements on disk: whole or refused, and those of earlier versions still read."""

import json
from contextlib import suppress

import pytest

from recbole_prmkd.compare.cost import read_costs
from recbole_prmkd.compare.grid import Grid, open_folder, read_grid
from recbole_prmkd.errors import UserError
from recbole_prmkd.storage.json_files import read_object, write_json, write_sealed
from recbole_prmkd.tune.plan import read_plan
from recbole_prmkd.tune.trial import finished

GARBAGE = [b"[]", b"{}", b"null", b"3", b"", b"\xff\xfe", b"[" * 100_000, b'{"checksum": 3}', b'{"schema": []}']


def test_round_trip(tmp_path):
    content = {"a": [1, 2.5, None, "\u65e5", float("inf")], "b": {"c": True}}
    write_sealed(tmp_path / "a.json", content)
    assert read_object(tmp_path / "a.json") == content
    write_json(tmp_path / "a.json", content)  # an earlier version's
    assert read_object(tmp_path / "a.json") == content


def test_no_flipped_bit_of_a_comparison_is_used(tmp_path):
    """Refused, or read as what it was: a damaged name of the checksum leaves the content."""
    grid = Grid(("a",), ("BPR",), ("none",), (1,), {"learning_rate": 0.5})
    open_folder(grid, tmp_path)
    file = tmp_path / "comparison.json"
    content = file.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with suppress(UserError):
            assert read_grid(tmp_path) == grid, bit


@pytest.mark.parametrize("content", GARBAGE)
def test_anything_in_place_of_a_plan_is_one_sentence(content, tmp_path):
    for name in ("comparison.json", "sweep.json", "cost.json", "finished.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="comparison"):
        read_grid(tmp_path)
    with pytest.raises(UserError, match="start a new sweep"):
        read_plan(tmp_path)
    assert read_costs(tmp_path / "cost.json") is None
    assert finished(tmp_path) in (None, {"schema": []})


def test_a_sweep_of_this_version_with_a_flipped_bit(tmp_path):
    write_sealed(tmp_path / "sweep.json", {"schema": "recbole_prmkd/sweep/2", "model": "BPR"})
    text = (tmp_path / "sweep.json").read_text()
    (tmp_path / "sweep.json").write_text(text.replace("BPR", "BQR"))
    assert json.loads((tmp_path / "sweep.json").read_text())["model"] == "BQR"
    with pytest.raises(UserError, match="is damaged"):
        read_plan(tmp_path)
