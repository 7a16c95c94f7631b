"""Item text by external token: fields, cleaning, coverage, and vectors that follow the item, not its number."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_tiny

from recbole_prmkd.data import encoder, text
from recbole_prmkd.data.split import load_split
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config import load_config


def config_of(cpu_settings, **more):
    return load_config("SASRec", "tiny", config_dict=cpu_settings(kd="mean", **more))


def test_fields_default_to_token_sequences(cpu_settings):
    assert text.text_fields(config_of(cpu_settings)) == ["title"]
    assert text.text_fields(config_of(cpu_settings, kd_text_fields=["brand", "title"])) == ["brand", "title"]


def test_texts_are_cleaned_and_missing_items_are_empty(cpu_settings, tmp_path):
    file = tmp_path / "own.item"
    file.write_text('item_id:token\ttitle:token_seq\n1\t  Nuts &amp; "bolts"  now..\n2\t\n')
    config = config_of(cpu_settings, kd_text_file=str(file))
    assert text.item_texts(config, ["1", "2", "3"]) == [{"title": "Nuts & bolts now.."}, {"title": ""}, {"title": ""}]
    assert text.as_sentence({"title": "Nuts & bolts now..", "brand": "", "kind": "x"}) == "Nuts & bolts now. x."
    with pytest.raises(UserError, match="none of the data set's items"):
        text.item_texts(config, ["7"])


def test_a_comma_inside_quotes_is_no_column(cpu_settings, tmp_path):
    file = tmp_path / "own.item"
    file.write_text('item_id:token,title:token_seq,brand:token\n1,"red, thing",b\n2,blue,c\n')
    config = config_of(cpu_settings, kd_text_file=str(file), field_separator=",", kd_text_fields=["title", "item_id"])
    assert text.item_texts(config, ["1", "2"]) == [
        {"title": "red, thing", "item_id": "1"},
        {"title": "blue", "item_id": "2"},
    ]
    file.write_text("item_id:token,title:token_seq\n1,a\n2,b,c,d\n")
    with pytest.raises(UserError, match="Cannot read item text") as caught:
        text.item_texts(config, ["1"])
    assert "\n" not in str(caught.value)


def test_vectors_follow_the_external_token(cpu_settings):
    config = config_of(cpu_settings)
    dataset = load_split(config).dataset
    vectors = text.item_text_vectors(config, dataset)
    assert vectors.shape[0] == dataset.item_num and not vectors[0].any()
    model = encoder.load_encoder(config)
    for item in (1, 9, 30):
        token = dataset.field2id_token["item_id"][item]
        sentence = text.as_sentence(text.item_texts(config, [token])[0])
        np.testing.assert_allclose(vectors[item], model.encode([sentence])[0], atol=1e-5)
    torch.testing.assert_close(vectors[1:].norm(dim=1), torch.ones(30))


def test_coverage_and_cuts_are_said(cpu_settings, tmp_path, caplog):
    data = write_tiny(tmp_path)
    file = data / "tiny" / "tiny.item"
    lines = file.read_text().splitlines()
    lines[3] = "i2\t" + "long " * 40 + "\tb"
    file.write_text("\n".join(line for line in lines if not line.startswith("i7\t")) + "\n")
    config = config_of(cpu_settings, data_path=str(data), kd_text_max_tokens=16, kd_cache_dir=str(tmp_path / "cache"))
    with caplog.at_level(logging.INFO):
        assert text.prepare_item_text(config, [f"i{i}" for i in range(30)]) is False
        assert text.prepare_item_text(config, [f"i{i}" for i in range(30)]) is True
    assert "29 of 30 items" in caplog.text and "1 items have no text (zero vector), for example i7" in caplog.text
    assert "1 of 30 item texts are longer than 16 tokens" in caplog.text


def written(folder, texts):
    """An item file with these texts, of items 0, 1, ..., and the items."""
    file = folder / "own.item"
    lines = [f"{item}\t{text}" for item, text in enumerate(texts)]
    file.write_text("\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n")
    return str(file), [str(item) for item in range(len(texts))]


def test_equal_texts_are_encoded_once_and_a_stopped_pass_resumes(cpu_settings, tmp_path, monkeypatch):
    texts = ["red", "a long text of many words", "", "red", "a shorter text", "red", "blue thing", "a shorter text"]
    file, tokens = written(tmp_path, texts)
    monkeypatch.setattr(encoder, "_CHUNK", 1)
    load, seen, stop = encoder.load_encoder, [], [2]

    def load_encoder(config):
        model = load(config)
        encode = model.encode

        def watched(chunk, **more):
            if len(seen) == stop[0]:
                raise KeyboardInterrupt
            seen.extend(chunk)
            return encode(chunk, **more)

        model.encode = watched
        return model

    monkeypatch.setattr(encoder, "load_encoder", load_encoder)
    config = config_of(cpu_settings, kd_text_file=file, kd_cache_dir=str(tmp_path / "cache"))
    with pytest.raises(KeyboardInterrupt):
        text.prepare_item_text(config, tokens)
    stop[0] = None
    assert text.prepare_item_text(config, tokens) is False
    assert seen == ["a long text of many words.", "a shorter text.", "blue thing.", "red."]
    whole = config_of(cpu_settings, kd_text_file=file, kd_cache_dir=str(tmp_path / "whole"))
    assert text.prepare_item_text(whole, tokens) is False and len(seen) == 8
    one, other = (next((tmp_path / part).glob("tiny/text-*/vectors.npy")) for part in ("cache", "whole"))
    assert one.read_bytes() == other.read_bytes()
    vectors, model = np.load(one), load(config)
    assert not vectors[2].any()
    for item in (0, 1, 3, 7):
        np.testing.assert_allclose(vectors[item], model.encode([f"{texts[item]}."])[0], atol=1e-5)


def test_half_precision_is_close_and_stored_apart(cpu_settings, tmp_path):
    vectors = []
    for precision in ("auto", "bfloat16", "float32"):
        config = config_of(cpu_settings, kd_encode_precision=precision, kd_cache_dir=str(tmp_path))
        vectors.append(text.item_text_vectors(config, load_split(config).dataset)[1:])
    full, half, again = vectors
    assert torch.equal(full, again) and half.dtype == torch.float32 and not torch.equal(full, half)
    assert (torch.cosine_similarity(full, half) > 0.99).all()
    assert len(list(tmp_path.glob("tiny/text-*"))) == 2


def test_all_empty_text_is_refused(cpu_settings, tmp_path):
    file = tmp_path / "own.item"
    file.write_text("item_id:token\ttitle:token_seq\ni1\t\ni2\t.\n")
    with pytest.raises(UserError, match="text is empty"):
        text.prepare_item_text(config_of(cpu_settings, kd_text_file=str(file)), ["i1", "i2"])
    with pytest.raises(UserError, match="No item of tiny has text"):
        encoder.encode(["", ""], config_of(cpu_settings), None)


def test_encoder_weights_are_checked(cpu_settings, monkeypatch):
    monkeypatch.setattr(encoder, "DEFAULT_ENCODER_SHA256", "0" * 64)
    with pytest.raises(UserError, match="not all-MiniLM-L6-v2"):
        encoder.encoder_folder("all-MiniLM-L6-v2")


def test_vectors_of_texts_that_another_data_set_has_are_taken_over(cpu_settings, tiny_encoder, tmp_path, caplog):
    """Text by text, bit for bit; what is new is encoded, within what other batches change (last bits)."""
    (tmp_path / "yesterday").mkdir()
    (tmp_path / "today").mkdir()
    old, old_items = written(tmp_path / "yesterday", ["red pen", "blue ink", "round table"])
    new, new_items = written(tmp_path / "today", ["green lamp and more words", "blue ink", "", "red pen"])
    shared = {"kd_text_encoder": str(tiny_encoder), "kd_cache_dir": str(tmp_path / "cache")}

    def vectors(file, items, dataset, **more):
        config = config_of(cpu_settings, kd_text_file=file, **{**shared, **more})
        config["dataset"] = dataset
        reused = text.prepare_item_text(config, items)
        folders = sorted((Path(config["kd_cache_dir"]) / dataset).glob("text-*"), key=lambda each: each.stat().st_mtime)
        return reused, np.load(folders[-1] / "vectors.npy"), folders[-1]

    _, before, _ = vectors(old, old_items, "old")
    with caplog.at_level("INFO"):
        reused, after, taken = vectors(new, new_items, "new")
    assert not reused and "2 of 3 texts have stored vectors" in caplog.text
    np.testing.assert_array_equal(after[[1, 3]], before[[1, 0]])
    assert not after[2].any()
    _, alone, whole = vectors(new, new_items, "new", kd_cache_dir=str(tmp_path / "other"))
    np.testing.assert_allclose(after, alone, atol=1e-5)
    assert whole.name != taken.name  # the identity says that some were taken over
    reused, again, same = vectors(new, new_items, "new")
    assert reused and same == taken
    np.testing.assert_array_equal(again, after)
    # All of them are known: nothing is encoded.
    _, known, _ = vectors(old, old_items, "third")
    np.testing.assert_array_equal(known, before)
    # Another encoder's or setting's vectors are not taken.
    caplog.clear()
    with caplog.at_level("INFO"):
        vectors(new, new_items, "new", kd_text_max_tokens=4)
    assert "texts have stored vectors" not in caplog.text
