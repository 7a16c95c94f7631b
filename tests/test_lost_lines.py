"""Items and lines that RecBole's reader and filters take out are named, with the cause; our own readers keep them."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.data import text
from recbole_prmkd.data.images import item_image_vectors
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config

ODD = ["NA", "null", "nan", "None", "N/A", "NULL", "NaN", "n/a", "<NA>", "#N/A"]


@pytest.fixture
def data(tmp_path, settings):
    """Writes the files of a data set; gives the configuration of a model on it."""

    def write(inter, model="BPR", item=None, kg=None, **more):
        folder = tmp_path / "odd"
        folder.mkdir(exist_ok=True)
        lines = [f"{user}\t{token}\t{time}" for time, (user, token) in enumerate(inter)]
        (folder / "odd.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")
        if item is not None:
            lines = [f"{token}\t{title}" for token, title in item]
            (folder / "odd.item").write_text("item_id:token\ttitle:token_seq\n" + "\n".join(lines) + "\n")
        if kg is not None:
            (folder / "odd.link").write_text("item_id:token\tentity_id:token\n" + "".join(f"{i}\te{i}\n" for i in kg))
            triples = "".join(f"e{i}\tr\te{kg[0]}\n" for i in kg)
            (folder / "odd.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\n" + triples)
        given = settings(data_path=str(tmp_path), kd_cache_dir=str(tmp_path / "cache"), use_gpu=False, **more)
        return load_config(model, "odd", config_dict=given)

    return write


def regular(users=6, items=8):
    return [(f"u{user}", f"i{(user + step) % items}") for user in range(users) for step in range(5)]


def read(config, caplog):
    with caplog.at_level(logging.WARNING):
        split = load_split(config)
    return split, "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("token", ODD)
def test_an_id_that_pandas_takes_as_missing_is_named(data, caplog, token):
    split, said = read(data([*regular(), ("u1", token), ("u2", token), (token, "i1")]), caplog)
    assert "3 lines" in said and f"missing, and leaves out what has them: '{token}'; rename" in said
    assert "leaves out 3 interactions, since their user or item was read as missing" in said
    assert token not in split.item_tokens and len(split.item_tokens) == 8


def test_only_ten_ids_are_named(data, caplog):
    odd = [*ODD, "", "-nan", "1.#IND"]
    _, said = read(data([*regular(), *(("u1", token) for token in odd)]), caplog)
    assert "'#N/A'" not in said.split("'NA'")[0] and "'NA', 'null'" in said and "and 3 more" in said


def test_each_filter_names_what_it_took(data, caplog):
    extra = [("u1", "rare"), ("u1", "i1"), ("u9", "i2"), ("u2", "stranger")]
    items = [*((f"i{n}", "thing") for n in range(8)), ("rare", "thing")]
    more = {"item_inter_num_interval": "[2,inf)", "user_inter_num_interval": "[2,inf)", "rm_dup_inter": "first"}
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "title"]}
    split, said = read(data([*regular(), *extra], item=items, load_col=columns, **more), caplog)
    assert "1 interactions, since they repeat a user and an item (rm_dup_inter): user_id and item_id u1 i1." in said
    assert "1 interactions, since their user or item is not in the .user or .item file: " in said
    assert "no longer there: item_id stranger" in said
    assert "(user_inter_num_interval, item_inter_num_interval): no longer there: user_id u9; " in said
    assert "no longer there: item_id rare." in said
    assert split.dataset.inter_num == 30


def test_items_without_a_link_are_named(data, caplog):
    linked = [f"i{n}" for n in range(7)]
    split, said = read(data(regular(), model="CKE", kg=linked), caplog)
    assert (
        "since their item is not linked to an entity of the .kg file by the .link file: no longer there: item_id i7"
        in said
    )
    assert "i7" not in split.item_tokens


def test_nothing_is_said_where_nothing_is_lost(data, caplog):
    _, said = read(data(regular()), caplog)
    assert "leaves out" not in said and "missing" not in said


def test_an_id_without_its_quotes_finds_its_text(data, caplog):
    inter = [(user, f'"{token}"') for user, token in regular()]
    for quote in ('"{}"', "{}"):
        config = data(inter, item=[(quote.format(f"i{n}"), f'title of 7" {n}') for n in range(8)])
        split, _ = read(config, caplog)
        assert sorted(split.item_tokens) == [f"i{n}" for n in range(8)]
        assert text.item_texts(config, ["i3"]) == [{"title": "title of 7 3"}]


def test_our_readers_keep_items_of_any_name(data, tmp_path):
    config = data(regular(), item=[(token, f"text of {token}") for token in ODD])
    assert text.item_texts(config, ODD) == [{"title": f"text of {token}"} for token in ODD]
    np.savez(tmp_path / "images.npz", item_id=np.array(ODD), feat=np.eye(len(ODD)))
    config["kd_item_images"] = str(tmp_path / "images.npz")

    dataset = SimpleNamespace(iid_field="item_id", field2id_token={"item_id": np.array(["[PAD]", *ODD])})
    assert item_image_vectors(config, dataset)[1][1:].all()


def test_a_line_that_ends_early_has_no_text(data):
    config = data(regular(), item=[("i1", "one"), ("i2", "two")])
    text.item_file(config).write_text("item_id:token\ttitle:token_seq\ni1\tone\ni2\n")
    assert text.item_texts(config, ["i1", "i2"]) == [{"title": "one"}, {"title": ""}]


def test_an_id_that_is_padding_in_pre_split_files_is_named(data, tmp_path, caplog):
    config = data([], benchmark_filename=["train", "valid", "test"])
    for part, extra in (("train", [("u1", "NA")]), ("valid", []), ("test", [])):
        lines = [f"{user}\t{token}\t{time}" for time, (user, token) in enumerate([*regular(), *extra])]
        file = tmp_path / "odd" / f"odd.{part}.inter"
        file.write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n")
    _, said = read(config, caplog)
    assert "In 1 lines of" in said and "odd.train.inter RecBole reads the id as missing, as padding: 'NA'" in said


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_a_batch_of_padding_alone_is_trained_on(model, settings, tmp_path):
    folder, head = tmp_path / "data" / "odd", "user_id:token\titem_id:token\titem_id_list:token_seq\n"
    folder.mkdir(parents=True)
    lines = [f"u{user}\ti{user + 1}\ti{user}\n" for user in range(6)]
    for part, more in (("train", "u1\tNA\ti1\n"), ("valid", ""), ("test", "")):
        (folder / f"odd.{part}.inter").write_text(head + "".join(lines) + more)
    (folder / "odd.item").write_text(
        "item_id:token\ttitle:token_seq\n" + "".join(f"i{item}\tthing {item}\n" for item in range(7))
    )
    given = {"benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"]}
    given |= {"load_col": {"inter": ["user_id", "item_id", "item_id_list"]}, "topk": [5], "valid_metric": "NDCG@5"}
    own = settings(kd="mean", data_path=str(tmp_path / "data"), train_batch_size=1, epochs=1, kd_unisrec_epochs=1)
    own |= {"kd_teachers": ["UniSRec"], "kd_unisrec_valid_metric": "NDCG@5", **given}
    assert run_recbole_prmkd(model, "odd", config_dict=own)["test_result"]
