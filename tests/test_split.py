"""Rows of histories: the same for every kind of student, from the training split alone, and nothing lost silently."""

import logging

import numpy as np
import pytest
import torch
from conftest import write_tiny

from recbole_prmkd import UserError
from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.checks import check_run
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.teachers.data import teacher_config, teacher_data


def split_of(settings, model="SASRec", **more):
    return load_split(load_config(model, "tiny", config_dict=settings(kd="mean", **more)))


def as_sets(examples, split, max_length=100):
    """Rows as a set of (user, history, target) in external tokens."""
    items, users = ["", *split.item_tokens], ["", *split.user_tokens]
    seq, length = examples.histories(torch.arange(len(examples)), max_length)
    return {
        (users[u], tuple(items[i] for i in seq[n, : length[n]]), items[t])
        for n, (u, t) in enumerate(zip(examples.users.tolist(), examples.targets.tolist(), strict=True))
    }


SAMPLE = Examples(
    users=torch.tensor([1, 1, 1, 2]),
    targets=torch.tensor([3, 9, 4, 7]),
    start=torch.tensor([0, 0, 0, 4]),
    stop=torch.tensor([1, 2, 3, 5]),
    items=torch.tensor([7, 3, 9, 4, 5, 7, 2]),
)


def test_histories_of_the_documented_example():
    seq, length = SAMPLE.histories(torch.tensor([2, 0, 3]), max_length=2)
    assert seq.tolist() == [[3, 9], [7, 0], [5, 0]] and length.tolist() == [2, 1, 1]


def test_equal_histories_have_equal_numbers():
    items = torch.tensor([1, 2, 3, 4, 2, 3, 4, 1])
    start, stop = torch.tensor([0, 0, 4, 4, 0, 7]), torch.tensor([3, 4, 6, 7, 1, 8])
    examples = Examples(torch.ones(6), torch.ones(6), start, stop, items)  # 1 2 3, 1 2 3 4, 2 3, 2 3 4, 1, 1
    assert examples.history_numbers(2).tolist() == [1, 2, 1, 2, 0, 0]
    assert examples.history_numbers(3).tolist() == [2, 3, 1, 3, 0, 0]
    assert examples.history_numbers(9).tolist() == [2, 4, 1, 3, 0, 0]
    assert len(examples.select(torch.tensor([], dtype=torch.int64)).history_numbers(2)) == 0


def test_compact_keeps_every_history_and_digest_sees_them_alone():
    order = torch.tensor([3, 0, 1, 2])
    compact = SAMPLE.select(order).compact()
    assert torch.equal(compact.histories(torch.arange(4), 9)[0], SAMPLE.histories(order, 9)[0])
    assert compact.items.tolist() == [5, 7, 3, 9]
    other_users = Examples(SAMPLE.users + 5, SAMPLE.targets, SAMPLE.start, SAMPLE.stop, SAMPLE.items)
    assert other_users.digest() == SAMPLE.digest() != SAMPLE.select(order).digest()


def test_all_kinds_of_student_have_the_same_rows(settings):
    seq, context, graph = (split_of(settings, model) for model in ("SASRec", "DeepFM", "LightGCN"))
    for part in ("train", "valid", "test"):
        of_seq = as_sets(getattr(seq, part), seq)
        assert as_sets(getattr(context, part), context) == as_sets(getattr(graph, part), graph)
        rest = as_sets(getattr(graph, part), graph) - of_seq
        assert of_seq <= as_sets(getattr(graph, part), graph)
        assert all(history == () for _, history, _ in rest)  # a sequential student has no row without history
        assert bool(rest) == (part == "train")


def test_sequential_histories_are_longer_than_the_student_sees(settings):
    split = split_of(settings, MAX_ITEM_LIST_LENGTH=3)
    assert int(split.train.lengths.max()) > 3
    seq, length = split.train.histories(torch.arange(len(split.train)), 3)
    inter = split.train_data._dataset.inter_feat
    assert torch.equal(seq, inter["item_id_list"]) and torch.equal(length, inter["item_length"])
    assert torch.equal(inter[EXAMPLE], torch.arange(len(inter)))


def test_later_items_are_the_rest_of_the_training_split(settings):
    split = split_of(settings, "LightGCN")
    for n in range(0, len(split.train), 7):
        before = split.train.histories(torch.tensor([n]), 99)[0][0].tolist()
        after = split.future.histories(torch.tensor([n]), 99)[0][0].tolist()
        mine = split.train.targets[split.train.users == split.train.users[n]].tolist()
        assert [i for i in [*before, int(split.train.targets[n]), *after] if i] == mine


def pre_split(settings, folder, files):
    """The split of a sequential student from files of histories; files: part -> lines."""
    data = folder / "data" / "tiny"
    data.mkdir(parents=True)
    for part, lines in files.items():
        header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
        (data / f"tiny.{part}.inter").write_text(header + "\n".join(lines) + "\n")
    return split_of(
        settings,
        data_path=str(folder / "data"),
        benchmark_filename=["train", "valid", "test"],
        alias_of_item_id=["item_id_list"],
        load_col={"inter": ["user_id", "item_id", "item_id_list"]},
    )


def test_pre_split_files_are_taken_as_they_are(settings, tmp_path):
    files = {"train": ["a\tx y\tz", "b\tz\tx", "a\ty\tx"], "valid": ["a\tx z\ty"], "test": ["b\tx y z\tx"]}
    split = pre_split(settings, tmp_path, files)
    assert as_sets(split.train, split) == {("a", ("x", "y"), "z"), ("b", ("z",), "x"), ("a", ("y",), "x")}
    assert as_sets(split.test, split) == {("b", ("x", "y", "z"), "x")}


def test_training_items_that_are_all_missing_are_refused(settings, tmp_path):
    files = {"train": ["a\tx y\t", "b\tz\t"], "valid": ["a\tx z\ty"], "test": ["b\tx y z\tx"]}
    with pytest.raises(UserError, match=r"No training interaction of tiny has an item: .*item_id"):
        pre_split(settings, tmp_path, files)


def test_lost_lines_are_said(settings, tmp_path, caplog):
    data = write_tiny(tmp_path)
    with (data / "tiny" / "tiny.inter").open("a") as file:
        file.write('u1\ti"1\t3\t9000\n')
        file.write('u2\t"i2\t3\t9000\nu3\ti3\t3\t9000"\n')
    with caplog.at_level(logging.WARNING):
        split_of(settings, data_path=str(data), item_inter_num_interval="[3,inf)")
    assert "RecBole's reader made" in caplog.text and "filters kept" in caplog.text


def test_teachers_number_items_by_token_and_hold_out_training_rows(settings):
    split = split_of(settings, "LightGCN")
    data = teacher_data(split, seed=1)
    assert data.item_tokens == sorted(split.item_tokens)
    canonical = ["", *data.item_tokens]
    for item, token in enumerate(split.item_tokens, start=1):
        assert canonical[data.canonical[item]] == token
    assert len(data.fit) + len(data.holdout) == int((split.train.lengths > 0).sum())
    assert 0 < len(data.holdout) <= len(data.fit) // 19 + 1
    assert len(torch.unique(data.holdout.users)) == len(data.holdout)


def test_rows_data_set_feeds_recbole_what_it_expects(settings):
    config = load_config("SASRec", "tiny", config_dict=settings(kd="mean"))
    data = teacher_data(load_split(config), seed=1)
    teacher = teacher_config("UniSRec", config)
    dataset = data.dataset(teacher, data.fit)
    batch = dataset[np.array([0, 3])]
    assert batch["item_id_list"].shape == (2, teacher["MAX_ITEM_LIST_LENGTH"]) and dataset.item_num == 31
    assert len(dataset) == len(data.fit) and torch.equal(batch["item_id"], data.fit.targets[[0, 3]])


def test_the_students_command_line_does_not_reach_the_teacher(settings, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", "--learning_rate=0.5", "--epochs=9", "--kd_unisrec_epochs=4"])
    config = load_config("SASRec", "tiny", config_dict=settings(kd="mean"))
    teacher = teacher_config("UniSRec", config)
    assert config["learning_rate"] == 0.5 and config["epochs"] == 9
    assert teacher["learning_rate"] == pytest.approx(0.001) and teacher["epochs"] == 4


def test_later_rows_of_a_part_follow_on_the_earlier_ones(settings):
    """By ratio a user has several validation and test examples; RecBole's own histories are the last items of these."""
    ratio = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "TO", "group_by": "user", "mode": "full"}
    split = split_of(settings, MAX_ITEM_LIST_LENGTH=3, eval_args=ratio)
    for examples, loader in ((split.valid, split.valid_data), (split.test, split.test_data)):
        assert len(examples) > len(examples.users.unique()) and int(examples.lengths.max()) > 3
        seq, length = examples.histories(torch.arange(len(examples)), 3)
        inter = loader._dataset.inter_feat
        assert torch.equal(seq, inter["item_id_list"]) and torch.equal(length, inter["item_length"])


@pytest.mark.parametrize("with_time", [True, False])
def test_pre_split_rows_of_a_student_without_histories_are_in_time_order(with_time, settings, tmp_path, caplog):
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    train = ["a\tz\t3", "b\tx\t1", "a\tx\t1", "a\ty\t2", "c\tw\t1"]
    files = {"train": train, "valid": ["a\tx\t4"], "test": ["b\ty\t5"]}
    for part, lines in files.items():
        (data / f"tiny.{part}.inter").write_text(header + "\n".join(lines) + "\n")
    columns = ["user_id", "item_id", *(["timestamp"] if with_time else [])]
    more = {"data_path": str(tmp_path / "data"), "load_col": {"inter": columns}}
    split = split_of(settings, "BPR", benchmark_filename=["train", "valid", "test"], **more)
    order = "xyz" if with_time else "zxy"  # without time, the lines' own
    wanted = {("a", tuple(order[:position]), order[position]) for position in range(3)}
    wanted |= {("b", (), "x"), ("c", (), "w")}
    assert as_sets(split.train, split) == wanted
    assert ("timestamp" in caplog.text) != with_time


def test_pre_split_files_need_no_time(settings, tmp_path):
    """Without load_col, of which RecBole's default would not ask for it either."""
    data = tmp_path / "data" / "tiny"
    data.mkdir(parents=True)
    for part, lines in {"train": ["a\tx", "a\ty", "b\tx", "c\tw"], "valid": ["a\tz"], "test": ["b\ty"]}.items():
        (data / f"tiny.{part}.inter").write_text("user_id:token\titem_id:token\n" + "\n".join(lines) + "\n")
    given = {"data_path": str(tmp_path / "data"), "benchmark_filename": ["train", "valid", "test"]}
    for model in ("BPR", "DeepFM"):
        config = load_config(model, "tiny", config_dict=settings(kd="none", **given))
        check_run(config, tmp_path / "out")
        assert len(load_split(config).train) == 4


def test_a_context_student_may_be_filtered_by_what_is_no_feature():
    """ml-100k's own settings load the rating, which the ranking protocol takes out of the features."""
    given = {"kd": "mean", "show_progress": False}
    plain, five = (
        load_split(load_config("DeepFM", "ml-100k", config_dict=given | more))
        for more in ({}, {"val_interval": {"rating": "[5,inf)"}})
    )
    assert 0 < len(five.train) < len(plain.train) / 4
    assert five.train_data._dataset.fields() == plain.train_data._dataset.fields()


def test_rows_that_stand_in_any_order_are_rebuilt(settings, tmp_path):
    files = {"train": ["a\tx y\tz", "b\tz\tx", "a\tx\ty"], "valid": ["a\tx y z\ty"], "test": ["b\tz x\ty"]}
    split = pre_split(settings, tmp_path, files)
    assert as_sets(split.train, split) == {("a", ("x", "y"), "z"), ("b", ("z",), "x"), ("a", ("x",), "y")}
    assert ("a", ("z",), "y") in as_sets(split.future, split)  # so what came after them is known
