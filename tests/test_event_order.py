"""The order of events is that of the exact times under `kd_protocol: ranking`; RecBole's own is left without it."""

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_prmkd.data import event_order
from recbole_prmkd.data.event_times import times_of
from recbole_prmkd.data.split import load_split
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.teachers.data import teacher_data

STUDENTS = ["SASRec", "BPR", "LightGCN", "DeepFM"]
LAST = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
COLUMNS = ["user_id", "item_id", "timestamp", "rating"]
NOW = 1_600_000_000


@pytest.fixture
def load(tmp_path, settings):
    """Writes interactions (user, item, time) into one file or several; gives the split of a model."""

    def loaded(events, model="BPR", kind="float", ranking=True, parts=None, **more):
        folder = tmp_path / "made"
        folder.mkdir(exist_ok=True)
        for name, lines in ({"made": events} if parts is None else parts).items():
            text = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in lines)
            (folder / f"{name}.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:{kind}\n{text}")
        if not ranking:
            more = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "eval_args": LAST, **more}
        protocol = "ranking" if ranking else "auto"
        own = {"data_path": str(tmp_path), "kd": "none", "kd_protocol": protocol, "use_gpu": False}
        given = settings(**{**own, **more})
        return load_split(load_config(model, "made", config_dict=given))

    return loaded


def sequences(split):
    """Item tokens of each user in the split's order: the test example's history, and its target."""
    index = torch.arange(len(split.test))
    items, lengths = split.test.histories(index, 50)
    tokens = ["", *split.item_tokens]
    return {
        split.user_tokens[user - 1]: [*(tokens[item] for item in row[:length]), tokens[target]]
        for user, row, length, target in zip(
            split.test.users.tolist(),
            items.tolist(),
            lengths.tolist(),
            split.test.targets.tolist(),
            strict=True,
        )
    }


def shuffled(spacing, users=10, length=12, start=NOW * 1000):
    """Each user's items i0, i1, ... at times `spacing` apart, the lines in random order; and the true sequences."""
    rng = np.random.default_rng(1)
    items = {f"u{user}": [f"i{item}" for item in rng.permutation(20)[:length]] for user in range(users)}
    events = [(user, item, start + spacing * place) for user, row in items.items() for place, item in enumerate(row)]
    return [events[index] for index in rng.permutation(len(events))], items


@pytest.mark.parametrize("model", ["BPR", *(pytest.param(name, marks=pytest.mark.slow) for name in STUDENTS[::2])])
def test_real_timestamps_decide_the_last_item(model, settings, caplog):
    splits = {}
    for protocol in ("host", "ranking"):
        caplog.clear()
        given = settings(
            kd="none", kd_protocol=protocol, eval_args=LAST, metrics=["NDCG"], valid_metric="NDCG@10", use_gpu=False
        )
        given.pop("data_path")
        splits[protocol] = load_split(load_config(model, "ml-100k", config_dict=given))
        said = "order of events is lost for 104 of 943 users" in caplog.text
        assert said == (protocol == "host")
    stock, exact = map(sequences, splits.values())
    assert sum(stock[user][-1] != exact[user][-1] for user in exact) == 4
    assert splits["host"].train.digest() != splits["ranking"].train.digest()  # so that nothing stored is taken over


@pytest.mark.parametrize("model", STUDENTS)
@pytest.mark.parametrize("spacing", [1, 1000])
def test_milliseconds_are_told_apart(model, spacing, load, caplog):
    events, items = shuffled(spacing)
    split = load(events, model)
    assert sequences(split) == items
    assert "order of events" not in caplog.text
    if model == "SASRec":
        train = split.train_data._dataset.inter_feat
        assert train["timestamp"].dtype == train["timestamp_list"].dtype == torch.float32
        assert set(train["timestamp"].tolist()) <= set(torch.tensor([float(time) for *_, time in events]).tolist())


def test_the_order_that_stock_recbole_loses_is_said_once_and_stays(load, caplog):
    events, items = shuffled(1)
    whole, own = shuffled(10**6, users=1)
    split = load([*events, *(("w", item, time) for _, item, time in whole)], ranking=False)
    assert caplog.text.count("lost for 10 of 11 users") == 1 and "--kd_protocol=ranking" in caplog.text
    lines = [item for user, item, _ in events if user == "u0"]
    assert sequences(split)["u0"] == lines != items["u0"]
    assert sequences(split)["w"] == own["u0"]


def test_a_data_set_that_recbole_saved_is_in_exact_order_too(load, tmp_path):
    events, items = shuffled(1)
    for _ in range(2):
        split = load(events, "SASRec", save_dataset=True, checkpoint_dir=str(tmp_path / "saved"))
        assert sequences(split) == items
    assert list((tmp_path / "saved").iterdir())


@pytest.mark.parametrize("model", [*STUDENTS, "DIEN"])
def test_times_that_single_precision_tells_apart_change_nothing(model, load, monkeypatch, caplog):
    events, _ = shuffled(100, start=0)
    np.random.seed(1)  # DIEN samples negatives as it reads
    exact = load(events, model)
    monkeypatch.setattr(event_order, "ranks_all_alike", lambda config: False)
    np.random.seed(1)
    stock = load(events, model)
    assert exact.item_tokens == stock.item_tokens
    for name in ("train_data", "valid_data", "test_data"):
        ours, own = (getattr(split, name)._dataset.inter_feat.interaction for split in (exact, stock))
        assert list(ours) == list(own)
        assert all(ours[field].dtype == own[field].dtype for field in own)
        assert all(torch.equal(ours[field], own[field]) for field in own)
    for part in ("train", "future", "valid", "test"):
        assert getattr(exact, part).digest() == getattr(stock, part).digest()


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
@pytest.mark.parametrize("repeated", [None, "first", "last"])
def test_equal_times_keep_the_order_of_the_file(model, repeated, load):
    items = [f"i{item}" for item in np.random.default_rng(2).permutation(40)]
    events = [("u", item, NOW) for item in items] + [("v", item, NOW) for item in reversed(items[1:])]
    events = [*events, ("w", "more", NOW), ("w", "and more", NOW)]
    split = load(events, model, rm_dup_inter=repeated)
    read = sequences(split)
    assert read["u"] == items and read["v"] == items[:0:-1]
    assert split.item_tokens == [*items, "more", "and more"]


def test_of_repeated_pairs_the_exact_times_choose_the_first(load):
    events = [("u", f"i{item}", NOW * 1000 + item) for item in range(30)]
    events = [("u", "i0", NOW * 1000 + 99), *events[::-1], ("v", "i30", NOW), ("v", "i31", NOW)]
    split = load(events, rm_dup_inter="first")
    assert sequences(split)["u"] == [f"i{item}" for item in range(30)]
    split = load(events, rm_dup_inter="last")
    assert sequences(split)["u"] == [*(f"i{item}" for item in range(1, 30)), "i0"]


def test_intervals_of_time_are_those_of_the_file(load):
    events, items = shuffled(1)
    split = load(events, val_interval={"timestamp": f"[{NOW * 1000 + 2},{NOW * 1000 + 8}]"})
    assert sequences(split) == {user: row[2:9] for user, row in items.items()}


def test_a_split_over_all_users_is_exact_too(load):
    events, _ = shuffled(1)
    events = [(user, item, NOW * 1000 + number) for number, (user, item, _) in enumerate(events)]
    ratio = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": None, "mode": "full"}
    for model in ("SASRec", "BPR"):
        split = load(events[::-1], model, eval_args=ratio)
        ours = [split.item_tokens[item - 1] for item in split.test.targets]
        assert sorted(ours) == sorted(item for _, item, _ in events[-len(ours) :])


FEATURES = {
    "normalised": {"normalize_field": ["timestamp"]},
    "numerical": {"numerical_features": ["timestamp"]},
    "in buckets": {
        "numerical_features": ["timestamp"],
        "discretization": {"timestamp": {"method": "ED", "bucket": 3}},
    },
}


@pytest.mark.parametrize("model", ["SASRec", "DeepFM", "DIN"])
@pytest.mark.parametrize("feature", FEATURES)
def test_students_that_read_times_find_recboles_values(model, feature, load, monkeypatch):
    events, items = shuffled(1)
    given = {"unused_col": {"inter": []}, **FEATURES[feature]}
    split = load(events, model, **given)
    assert sequences(split) == items
    monkeypatch.setattr(event_order, "ranks_all_alike", lambda config: False)
    stock = load([event for event in sorted(events, key=lambda event: event[2])], model, **given)
    for own, column in (("timestamp", 0), ("timestamp_list", 1)):
        ours, theirs = (each.train_data._dataset.inter_feat.interaction for each in (split, stock))
        assert (own in ours) == (own in theirs)
        if own in ours:
            assert ours[own].dtype == theirs[own].dtype and ours[own].shape == theirs[own].shape
            assert torch.equal(ours[own].flatten(column).unique(dim=0), theirs[own].flatten(column).unique(dim=0))


def test_pre_split_files_are_read_in_exact_order(load):
    events, items = shuffled(1)
    last = {user: row[-1] for user, row in items.items()}
    parts = {
        "made.train": [event for event in events if last[event[0]] != event[1]],
        "made.valid": [],
        "made.test": [event for event in events if last[event[0]] == event[1]],
    }
    parts["made.valid"] = parts["made.test"]
    for model in ("BPR", "DeepFM"):
        split = load(events, model, parts=parts, benchmark_filename=["train", "valid", "test"])
        assert {user: row[:11] for user, row in sequences(split).items()} == {u: row[:11] for u, row in items.items()}


DATES = {
    "ISO": "2020-09-13T12:26:{:02}",
    "a space": "2020-09-13 12:26:{:02}",
    "UTC": "2020-09-13T12:26:{:02}Z",
    "a zone": "2020-09-13T12:26:{:02}+02:00",
    "milliseconds": "2020-09-13T12:26:40.0{:02}",
    "date only": "2020-09-{:02}",
    "slashes": "2020/09/{:02} 10:00",
    "a month's name": "{} September 2020",
    "American": "Sep {}, 2020 10:15:00",
    "exported": "2020-09-13 12:26:{:02} UTC",
    "short": "2020/9/{}",
    "ctime": "Sun Sep 13 12:26:{:02} 2020",
    "mail": "{:02} Sep 2020 12:26:40 +0000",
}


@pytest.mark.parametrize("form", DATES)
@pytest.mark.parametrize("kind", ["float", "token"])
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_dates_in_words_are_read(form, kind, model, load):
    events, items = shuffled(1, start=5)
    events = [(user, item, DATES[form].format(time)) for user, item, time in events]
    assert sequences(load(events, model, kind)) == items


@pytest.mark.parametrize("kind", ["float", "token"])
@pytest.mark.parametrize(
    "text",
    [
        "01/02/2020",
        "13.09.2020",
        "12:26",
        "yesterday",
        "2020-13-45",
        "Sep 2020 10:00",
        "20-9-13",
        "13 Sep 2020 9:00 PST",
    ],
)
def test_dates_that_would_be_guessed_are_refused(text, kind, load):
    events = [("u", f"i{item}", f"2020-09-{item + 10}") for item in range(6)]
    with pytest.raises(UserError, match=r"made\.inter, line 4: '.*' in column 'timestamp' .*1970") as raised:
        load([*events[:2], ("u", "x", text), *events[2:]], kind=kind)
    assert repr(text) in str(raised.value)


def test_stock_recbole_refuses_dates_and_says_what_to_write(load):
    events = [("u", f"i{item}", f"2020-09-{item + 10}") for item in range(6)]
    with pytest.raises(UserError, match=r"line 2: '2020-09-10' .*since 1970.*--kd_protocol=ranking"):
        load(events, ranking=False)


def test_other_faults_are_named_where_dates_are_read(load):
    events = [("u", f"i{item}", f"2020-09-{item + 10}\t5") for item in range(6)]
    with pytest.raises(UserError, match=r"made\.inter, line 8: 'five' is in a column of type float"):
        load([*events, ("u", "i9", "2020-09-20\tfive")], kind="float\trating:float", load_col={"inter": COLUMNS})


def test_dates_of_type_token_are_counted_where_stock_recbole_loses_them(load, caplog):
    events, items = shuffled(1, start=10)
    dates = [(user, item, f"2020-09-{time}") for user, item, time in events]
    load(dates, kind="token", ranking=False)
    assert "orders a time of type token by its first line" in caplog.text and f"of {len(items)} users" in caplog.text


@pytest.mark.parametrize("start", [NOW * 10**9 + 7, -NOW * 10**9, 2**63 + 5])
def test_whole_numbers_beyond_double_precision_keep_their_order(start, load):
    events, items = shuffled(1, start=start)
    assert sequences(load(events)) == items
    times = [time for *_, time in events]
    read = times_of(pd.Series([str(time) for time in times]))
    assert np.array_equal(np.argsort(read), np.argsort(read.astype(float)))
    assert np.allclose(read, np.array(times, dtype=float), rtol=1e-14)


def test_times_that_are_no_numbers_are_counted(load, caplog):
    events, _ = shuffled(100, start=0)
    broken = [(user, item, "nan" if number in (3, 9) else time) for number, (user, item, time) in enumerate(events)]
    for ranking in (True, False):
        caplog.clear()
        load(broken, ranking=ranking)
        assert caplog.text.count("timestamp is no finite number (2 missing or NaN, 0 infinite)") == 1


def test_teachers_learn_the_same_order_beside_every_student(load, monkeypatch):
    """Distillation implies the protocol; what teachers are stored under changes with the order."""
    events, items = shuffled(1)
    given = {"kd": "prmkd", "kd_protocol": "auto"}
    splits = [load(events, model, **given) for model in STUDENTS]
    assert all(sequences(split) == items for split in splits)
    data = [teacher_data(split, seed=1) for split in splits]
    fits, holdouts = {each.fit.digest() for each in data}, {each.holdout.digest() for each in data}
    assert len(fits) == len(holdouts) == 1
    monkeypatch.setattr(event_order, "ranks_all_alike", lambda config: False)
    stock = teacher_data(load(events, **given), seed=1)
    assert stock.fit.digest() not in fits
