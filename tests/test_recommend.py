"""Lists of recommendations: RecBole's own where both apply, in parts, resumed, and in one sentence where not."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.utils.case_study import full_sort_scores
from trained import FAMILIES, ITEMS, USERS

import recbole_prmkd
from recbole_prmkd import UserError, load, recommend
from recbole_prmkd.serving import list_file
from recbole_prmkd.serving.command import serve
from recbole_prmkd.serving.histories import histories_of
from recbole_prmkd.serving.recommendation import top_items
from recbole_prmkd.serving.scoring import Scorer


@pytest.fixture(scope="module")
def sasrec(runs):
    return load(runs / "SASRec")


def of(lists, user):
    return lists[lists.user_id == user].item_id.tolist()


@pytest.mark.parametrize("model", FAMILIES)
def test_lists_are_recboles(runs, model):
    """Against `full_sort_scores`, which answers from the history before the test item."""
    loaded = load(runs / model)
    loader, numbers = loaded.split.test_data, list(range(1, 9))
    stock = full_sort_scores(numbers, loaded.model, loader)
    items = {user: loaded.histories.items[slice(*loaded.histories.start[user : user + 2])] for user in numbers}
    before = [items[user][:-1].tolist() for user in numbers]  # without the test item
    if model == "MultiVAE":  # RecBole reads the training part alone
        before = [history[:-1] for history in before]
    scorer = Scorer(loaded, histories_of([[], *before]), known=True)
    ours = scorer.scores(np.array(numbers))
    visible = torch.isfinite(stock)
    torch.testing.assert_close(ours[visible], stock[visible], rtol=0, atol=1e-6)
    seen = [items[user].tolist() for user in numbers]
    stock[np.repeat(np.arange(8), [len(history) for history in seen]), np.concatenate(seen)] = -torch.inf
    expected = torch.topk(stock, 5).indices
    pairs = histories_of(seen).pairs(np.arange(8))
    ids, _ = top_items(ours, pairs, 5)
    assert torch.equal(ids, expected)


@pytest.mark.parametrize("model", FAMILIES)
def test_seen_items_are_left_out_or_not(runs, model):
    loaded = load(runs / model)
    lists = recommend(loaded, topk=100)
    for user in (1, 7):
        token = loaded.user_tokens[user]
        known = loaded.histories.items[slice(*loaded.histories.start[user : user + 2])]
        assert not {loaded.item_tokens[item] for item in known} & {*of(lists, token)}
        assert len(of(lists, token)) == ITEMS - len(known)  # more are asked for than there are
    assert len(of(recommend(loaded, users=["u1"], topk=100, unseen=False), "u1")) == ITEMS
    assert list(lists.columns) == ["user_id", "rank", "item_id", "score"]
    first = lists[lists.user_id == "u1"]
    assert first["rank"].tolist() == list(range(1, len(first) + 1)) and first.score.is_monotonic_decreasing


@pytest.mark.parametrize("model", ["SASRec", "MultiVAE"])
def test_new_history_gets_the_list_of_a_user_with_that_history(runs, model):
    loaded = load(runs / model)
    known = recommend(loaded, users=["u3"], topk=8)
    number = loaded.user_tokens.index("u3")
    items = loaded.histories.items[slice(*loaded.histories.start[number : number + 2])]
    given = recommend(loaded, histories={"a stranger": [loaded.item_tokens[item] for item in items]}, topk=8)
    assert given.item_id.tolist() == known.item_id.tolist()
    np.testing.assert_allclose(given.score, known.score, atol=1e-6)


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "DeepFM", "CKE"])
def test_student_of_known_users_refuses_new_histories(runs, model):
    with pytest.raises(UserError, match=r"no history of another user: train .*SASRec.*MultiVAE"):
        recommend(runs / model, histories={"x": ["i1"]})


def test_whole_history_newest_last(sasrec, runs):
    """The history of a user in the file's order of times, the test item at its end."""
    lines = pd.read_csv(runs / "elsewhere" / "shop" / "shop.inter", sep="\t")
    lines.columns = ["user", "item", "time"]
    for user in ("u0", "u5"):
        number = sasrec.user_tokens.index(user)
        found = sasrec.histories.items[slice(*sasrec.histories.start[number : number + 2])]
        expected = lines[lines.user == user].sort_values("time").item.tolist()
        assert [sasrec.item_tokens[item] for item in found] == expected


def test_unknown_tokens_are_counted_named_and_left_out(sasrec, caplog):
    lists = recommend(sasrec, users=["u1", "nobody", *(f"x{n}" for n in range(12)), "u2"], topk=2)
    assert lists.user_id.unique().tolist() == ["u1", "u2"]
    assert "13 unknown users left out: 'nobody', 'x0'" in caplog.text and "'x9'" not in caplog.text
    lists = recommend(sasrec, histories={"a": ["i1", "gone"], "b": ["gone"]}, topk=2)
    assert lists.user_id.unique().tolist() == ["a"]
    assert "1 unknown items left out: 'gone'" in caplog.text and "1 histories without a known item" in caplog.text


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_file_in_parts_is_the_table(sasrec, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("recbole_prmkd.serving.recommendation._PART_LINES", 10)
    monkeypatch.setattr(Scorer, "batch", 4)
    file = recommend(sasrec, topk=3, output=tmp_path / f"lists{suffix}")
    read = pd.read_parquet(file) if suffix == ".parquet" else pd.read_csv(file, dtype={"user_id": str})
    pd.testing.assert_frame_equal(read, recommend(sasrec, topk=3), check_dtype=False)
    assert [each.name for each in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("damage", [None, "part", "other"])
def test_killed_run_goes_on(sasrec, tmp_path, monkeypatch, damage):
    """A kill after each number of parts: the file is the same, and finished parts are not made again."""
    monkeypatch.setattr("recbole_prmkd.serving.recommendation._PART_LINES", 10)
    monkeypatch.setattr(Scorer, "batch", 4)
    whole = recommend(sasrec, topk=3, output=tmp_path / "whole.csv").read_bytes()
    write, scored = list_file.ListFile.write, []
    score = Scorer.scores

    def killed(self, table):
        if self.done == 3:
            raise KeyboardInterrupt
        write(self, table)

    monkeypatch.setattr(list_file.ListFile, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        recommend(sasrec, topk=3, output=tmp_path / "lists.csv")
    assert not (tmp_path / "lists.csv").exists()
    monkeypatch.setattr(list_file.ListFile, "write", write)
    monkeypatch.setattr(Scorer, "scores", lambda self, users: (scored.extend(users), score(self, users))[1])
    if damage == "part":
        next((tmp_path / ".lists.csv.parts").glob("000001*")).write_text("half")
    again = recommend(sasrec, topk=2 if damage == "other" else 3, output=tmp_path / "lists.csv")
    assert len(scored) == {None: USERS - 12, "part": USERS - 4, "other": USERS}[damage]
    if damage != "other":
        assert again.read_bytes() == whole


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"topk": 0}, "topk is 0"),
        ({"topk": 2.5}, "topk is 2.5"),
        ({"unseen": "yes"}, "unseen"),
        ({"output": "lists.txt"}, "ends in .parquet or .csv"),
        ({"users": ["nobody"]}, "None of the 1 users"),
        ({"users": "missing.txt"}, "Cannot read --users=missing.txt"),
        ({"histories": "missing.csv"}, "Cannot read --histories=missing.csv"),
        ({"histories": "missing.txt"}, "name a table"),
        ({"histories": {}}, "No history"),
        ({"users": ["u1"], "histories": {"a": ["i1"]}}, "not both"),
    ],
)
def test_wrong_input_gives_one_sentence(sasrec, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        recommend(sasrec, **given)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("h.csv", "", "as a table"),
        ("h.csv", "user_id,item_id\n", "no events"),
        ("h.csv", "user,item_id\na,i1\n", "no column user_id"),
        ("h.csv", "user_id,item_id,timestamp\na,i1,noon\n", "line 2: the timestamp is no number"),
        ("u.txt", "\n\n", "names no user"),
        ("u.csv", "name\nu1\n", "no column user_id"),
    ],
)
def test_wrong_file_gives_one_sentence(sasrec, tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words):
        recommend(sasrec, **{"histories" if name[0] == "h" else "users": tmp_path / name})


def test_files_of_users_and_histories(sasrec, tmp_path):
    """Text, CSV, RecBole's own columns, parquet; a column of times decides the order."""
    (tmp_path / "users.txt").write_text("u2\nu1\nu2\n")
    assert recommend(sasrec, users=tmp_path / "users.txt", topk=1).user_id.tolist() == ["u2", "u1"]
    expected = recommend(sasrec, histories={"a": ["i1", "i2"], "b": ["i3"]}, topk=4)
    (tmp_path / "h.csv").write_text("user_id,item_id\na,i1\nb,i3\na,i2\n")
    (tmp_path / "h.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\na\ti2\t9\nb\ti3\t1\na\ti1\t3.5\n")
    table = pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["i1", "i2", "i3"]})
    table.to_parquet(tmp_path / "h.parquet")
    for name in ("h.csv", "h.inter", "h.parquet"):
        found = recommend(sasrec, histories=tmp_path / name, topk=4)
        key = ["user_id", "rank"]
        pd.testing.assert_frame_equal(
            found.sort_values(key, ignore_index=True), expected.sort_values(key, ignore_index=True)
        )


def test_command_line(runs, tmp_path, capsys):
    (tmp_path / "users.txt").write_text("u1\n")
    serve([f"--recommend={runs / 'BPR'}", f"--users={tmp_path / 'users.txt'}", "--topk=3", "--unseen=False"])
    file = runs / "BPR" / "recommendations.parquet"
    assert capsys.readouterr().out == f"Lists: {file}\n"
    expected = recbole_prmkd.recommend(runs / "BPR", users=["u1"], topk=3, unseen=False)
    pd.testing.assert_frame_equal(pd.read_parquet(file), expected, check_dtype=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topkk=3"], "did you mean --topk"),
        (["--epochs=3"], "it takes --users"),
        (["more"], "has no option 'more'"),
        (["--topk=0"], "no whole number above 0"),
        (["--topk"], "expected one argument"),
        (["--unseen=perhaps"], "neither True nor False"),
        (["--users="], "--users= is empty"),
        (["--format=onnx"], "--format is not for --recommend"),
        (["--export=x"], "not both"),
    ],
)
def test_command_line_refuses_in_one_sentence(runs, arguments, words):
    with pytest.raises(UserError, match=words):
        serve([f"--recommend={runs / 'BPR'}", *arguments])


def test_options_of_trained_students_are_refused_in_training():
    done = subprocess.run(
        [sys.executable, "run_recbole_prmkd.py", "--model=BPR", "--users=u.txt"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "add --recommend=RUN_FOLDER" in done.stderr.splitlines()[-1]
