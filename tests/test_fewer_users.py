"""A data set with some of its users: whole users, the same ones each time, and nothing half-written."""

import sys

import pytest

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data import fewer_users as module
from recbole_prmkd.data.fewer_users import fewer_users


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "small"
    made.mkdir()
    lines = [f"{item}\tu{user}\t{item + user}" for user in range(200) for item in range(1 + user % 7)]
    (made / "small.inter").write_text("\n".join(["item_id:token\tuser_id:token\ttimestamp:float", *lines]) + "\n")
    (made / "small.item").write_text("item_id:token\n1\n")
    return made


def users_of(file):
    lines = file.read_text().splitlines()[1:]
    return {line.split("\t")[1] for line in lines}, lines


def test_users_are_kept_whole_and_nested(folder, tmp_path):
    everyone, all_lines = users_of(folder / "small.inter")
    found = {}
    for share in (0.1, 0.3):
        name, users, lines = fewer_users(folder, "small", share, tmp_path / "into")
        found[share], kept = users_of(tmp_path / "into" / name / f"{name}.inter")
        assert name == f"small-users{100 * share:g}" and users == len(found[share]) and lines == len(kept)
        assert kept == [line for line in all_lines if line.split("\t")[1] in found[share]]
        assert (tmp_path / "into" / name / f"{name}.item").read_text() == "item_id:token\n1\n"
    assert found[0.1] < found[0.3] < everyone and 5 < len(found[0.1]) < 40 < len(found[0.3]) < 80
    fewer_users(folder, "small", 0.3, tmp_path / "other", seed=1)
    assert users_of(tmp_path / "other" / "small-users30" / "small-users30.inter")[0] != found[0.3]


def test_what_cannot_be_is_said_and_nothing_is_left(folder, tmp_path):
    into = tmp_path / "into"
    for given, words in (
        ({"share": 1.0}, "range is"),
        ({"share": 0.1, "user": "person"}, "no column person"),
        ({"share": 1e-9}, "No user of small is left"),
        ({"share": 0.1, "dataset": "large"}, "There is no"),
    ):
        with pytest.raises(UserError, match=words):
            fewer_users(**{"folder": folder, "dataset": "small", "into": into, **given})
    assert not into.exists() or not list(into.iterdir())
    fewer_users(folder, "small", 0.1, into)
    with pytest.raises(UserError, match="is there already"):
        fewer_users(folder, "small", 0.1, into)


def test_the_command_takes_a_data_set_of_recbole(tmp_path, monkeypatch, capsys, settings):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fewer_users", "ml-100k", "--share=0.1"])
    module.main()
    assert "dataset/ml-100k-users10" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["run"])
    given = settings(kd="none", data_path=str(tmp_path / "dataset"), epochs=1)
    assert run_recbole_prmkd("BPR", "ml-100k-users10", config_dict=given)["result"]["student"]["epochs"] == 1
    monkeypatch.setattr(sys, "argv", ["fewer_users", "no-such-data", "--share=0.1"])
    with pytest.raises(SystemExit, match="There is no"):
        module.main()
