"""Data sets in UniSRec's processed layout are read as they are, texts, vectors and all."""

import json

import numpy as np
import pytest
import torch
from conftest import ITEMS, USERS

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data import processed
from recbole_prmkd.data.split import load_split
from recbole_prmkd.data.text import item_text_vectors, item_texts
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.teachers.data import teacher_data

WIDTH = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data_path of a data set Toy; item number n is raw item `Bn`, its vector has n + 1 in front."""
    data = tmp_path_factory.mktemp("processed")
    (data / "Toy").mkdir()
    rng = np.random.default_rng(0)
    lines_of = {part: ["user_id:token\titem_id_list:token_seq\titem_id:token"] for part in processed.PARTS}
    for user in range(USERS):
        start = rng.integers(ITEMS)
        items = [str((start + step) % ITEMS) for step in range(rng.integers(6, 12))]
        for position in range(1, len(items)):
            part = {len(items) - 1: "test", len(items) - 2: "valid"}.get(position, "train")
            lines_of[part].append(f"{user}\t{' '.join(items[:position])}\t{items[position]}")
    for part, lines in lines_of.items():
        (data / "Toy" / f"Toy.{part}.inter").write_text("\n".join(lines) + "\n")
    order = rng.permutation(ITEMS)  # the text file has an order of its own
    texts = "".join(f"B{item}\tThing number {item}.\n" for item in order)
    (data / "Toy" / "Toy.text").write_text("item_id:token\ttext:token_seq\n" + texts)
    (data / "Toy" / "Toy.item2index").write_text("".join(f"B{item}\t{item}\n" for item in range(ITEMS)))
    vectors = rng.standard_normal((ITEMS, WIDTH)).astype("<f4")
    vectors[:, 0] = np.arange(ITEMS) + 1
    vectors.tofile(data / "Toy" / "Toy.feat1CLS")
    return data


@pytest.fixture
def here(folder, settings):
    """Settings of a run on that data set."""
    return lambda **more: settings(data_path=str(folder), **more)


def test_texts_and_vectors_belong_to_their_items(here):
    config = load_config("UniSRec", "Toy", config_dict=here())
    split = load_split(config)
    assert sorted(split.item_tokens, key=int) == [str(item) for item in range(ITEMS)]
    texts = item_texts(config, split.item_tokens)
    assert [text["text"] for text in texts] == [f"Thing number {token}." for token in split.item_tokens]
    vectors = item_text_vectors(config, split.dataset)
    assert vectors.shape == (ITEMS + 1, WIDTH) and not vectors[0].any()
    assert vectors[1:, 0].tolist() == [int(token) + 1 for token in split.item_tokens]


def test_rows_are_those_of_the_files(here, folder):
    split = load_split(load_config("SASRec", "Toy", config_dict=here()))
    lines = (folder / "Toy" / "Toy.train.inter").read_text().splitlines()[1:]
    histories, lengths = split.train.histories(torch.arange(len(split.train)), 50)
    for line, history, length, target in zip(lines, histories, lengths, split.train.targets, strict=True):
        _, before, item = line.split("\t")
        assert [split.item_tokens[i - 1] for i in history[:length]] == before.split()
        assert split.item_tokens[target - 1] == item
    data = teacher_data(split, seed=1)
    assert len(data.fit) + len(data.holdout) == len(lines)


@pytest.mark.parametrize("student", ["SASRec", "BPR"])
def test_distilled_students(student, here):
    run = run_recbole_prmkd(student, "Toy", config_dict=here(kd="mean"))
    assert run["result"]["teachers"]["UniSRec"]["unknown_items"] == 0
    assert run["result"]["dataset"]["items"] == ITEMS
    assert all(np.isfinite(epoch["kd_loss"]) for epoch in run["result"]["distillation"])
    json.dumps(run["result"])


def test_vectors_of_another_size_are_refused(here, folder, tmp_path):
    file = folder / "Toy" / "Toy.feat1CLS"
    kept = file.read_bytes()
    try:
        file.write_bytes(kept[:-4])
        with pytest.raises(UserError, match="no whole number for each of 30 items"):
            run_recbole_prmkd("UniSRec", "Toy", config_dict=here())
    finally:
        file.write_bytes(kept)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0, 1e30])
def test_ready_vectors_without_a_direction_are_refused_or_counted(value, here, folder, caplog):
    file = folder / "Toy" / "Toy.feat1CLS"
    kept = file.read_bytes()
    table = np.frombuffer(kept, dtype="<f4").reshape(ITEMS, WIDTH).copy()
    config = load_config("SASRec", "Toy", config_dict=here())
    split = load_split(config)
    try:
        table[:2] = value
        file.write_bytes(table.tobytes())
        assert (item_text_vectors(config, split.dataset)[1:] != 0).any(dim=1).sum() == ITEMS - 2
        assert f"2 of {ITEMS} vectors are zero, not finite" in caplog.text
        table[:] = value
        file.write_bytes(table.tobytes())
        with pytest.raises(UserError, match=r"Every vector of the data set in .*feat1CLS"):
            item_text_vectors(config, split.dataset)
    finally:
        file.write_bytes(kept)


def test_pretraining_without_second_texts_says_how_to_do_without(here):
    config = load_config("UniSRec", "Toy", config_dict=here(train_stage="pretrain"))
    split = load_split(config)
    with pytest.raises(UserError, match="--item_drop_share=1"):
        item_text_vectors(config, split.dataset, word_drop=0.15)
