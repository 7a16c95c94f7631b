"""The teachers against the published formulas in plain numpy (`reference.py`), whose outputs the repository holds."""

import json

import numpy as np
import pytest
import reference
import tiny_teachers

STORED = json.loads(reference.FILE.read_text(encoding="utf-8"))


def close(ours, expected):
    np.testing.assert_allclose(ours.detach().numpy(), np.array(expected), rtol=1e-5, atol=1e-5)


def check(model, batch, expected):
    """Item and history vectors, logits and loss of a teacher that reads histories through item vectors."""
    items = model.encode_items()
    close(items, expected["items"])
    histories = model.encode_batch(batch, items)
    close(histories, expected["histories"])
    close(model.scores(histories, items) / model.temperature, expected["logits"])
    close(model.full_sort_predict(batch), np.array(expected["logits"]) * model.temperature)
    close(model.calculate_loss(batch), expected["loss"])


def test_the_stored_outputs_are_the_references():
    found = reference.outputs()
    for teacher, expected in STORED.items():
        pairs = zip(numbers(found[teacher]), numbers(expected), strict=True)
        assert all(np.allclose(mine, theirs, rtol=0, atol=2e-7) for mine, theirs in pairs), teacher


def numbers(outputs):
    """Arrays of a tree of outputs, in its order."""
    for value in outputs.values():
        yield from numbers(value) if isinstance(value, dict) else [np.array(value)]


@pytest.mark.parametrize("stage", ["inductive", "transductive"])
def test_unisrec(stage):
    model = tiny_teachers.unisrec(stage)
    close(model.moe_adaptor.gates(model.plm_embedding.weight), STORED["unisrec"]["gates"])
    close(model.moe_adaptor(model.plm_embedding.weight), STORED["unisrec"]["inductive"]["items"])
    check(model, tiny_teachers.batch(), STORED["unisrec"][stage])


def test_unim2rec():
    check(tiny_teachers.unim2rec(), tiny_teachers.batch(), STORED["unim2rec"])


@pytest.mark.parametrize("windows", [0, 1000], ids=["stock", "dense"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_recformer(pooling, windows, tmp_path):
    model, batch = tiny_teachers.recformer(tmp_path, pooling), tiny_teachers.text_batch()
    model.longformer.dense_up_to = windows
    tokens = model.item_tokens.batch(batch["item_id_list"], batch["item_length"])
    real = tokens.attention_mask[0].bool()
    close(model.longformer.embeddings(tokens)[0, real], STORED["recformer"]["embedded"])
    close(model.longformer(tokens)[0, real], STORED["recformer"]["states"])
    expected = STORED["recformer"][pooling]
    items = model.encode_items()
    close(items[1:], expected["items"])
    close(model.encode_batch(batch, items), expected["histories"])
    close(model.full_sort_predict(batch)[:, 1:], expected["cosine"])
    close(model.calculate_loss(batch), expected["loss"])


def test_a_history_longer_than_the_window_is_among_them():
    """Else the local attention would be compared with the full one."""
    assert len(STORED["recformer"]["states"]) > 2 * reference.WINDOW
