"""`kd_text_encoder: static`: word vectors in place of a transformer."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data import encoder, static_encoder, text
from recbole_prmkd.data.encoder_layout import averages_words, read_layout
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.teachers import auto

TEXTS = {"i1": "red guitar strings", "i2": "strings guitar red", "i3": "blue piano", "i4": "blue piano blue piano"}


@pytest.fixture
def vectors_of(cpu_settings, tmp_path):
    """Encodes texts: vectors of the items that have these tokens, and the notes."""

    def made(texts=TEXTS, name=static_encoder.STATIC, **more):
        file = tmp_path / "texts.item"
        lines = [f"{token}\t{its}" for token, its in texts.items()]
        file.write_text("\n".join(["item_id:token\ttitle:token_seq", *lines]), encoding="utf-8")
        given = {"kd_text_file": str(file), "kd_cache_dir": str(tmp_path / "cache"), "kd_text_encoder": str(name)}
        config, notes = load_config("SASRec", "tiny", config_dict={**cpu_settings(**given, **more)}), {}
        text.prepare_item_text(config, [*texts], notes=notes)
        dataset = SimpleNamespace(field2id_token={"item_id": np.array(["[PAD]", *texts])}, iid_field="item_id")
        return text.item_text_vectors(config, dataset)[1:], notes

    return made


def test_a_text_is_the_mean_of_its_words(vectors_of):
    vectors, notes = vectors_of()
    folder = static_encoder.wordllama_folder()
    words = static_encoder.load_wordllama(folder, "cpu")[0]
    ids = words.tokenizer.encode(text.as_sentence({"title": TEXTS["i1"]}), add_special_tokens=False).ids
    mean = words.embedding.weight[ids].mean(0)
    torch.testing.assert_close(vectors[0], (mean / mean.norm()).detach(), rtol=0, atol=1e-3)
    torch.testing.assert_close(vectors[0], vectors[1], rtol=0, atol=1e-3)  # the same words
    assert notes["pooling"] == static_encoder.POOLING and notes["cut"] == 0 and notes["max_tokens"] == 256


def test_long_texts_are_cut(vectors_of):
    texts = {"i1": "guitar " * 9 + "piano", "i2": "guitar " * 10, "i3": "piano"}
    vectors, notes = vectors_of(texts, kd_text_max_tokens=9)
    assert notes["cut"] == 2 and notes["max_tokens"] == 9
    torch.testing.assert_close(vectors[0], vectors[1], rtol=0, atol=1e-3)


def test_a_folder_of_word_vectors_works_too(vectors_of, tmp_path):
    folder = tmp_path / "words"
    static_encoder.load_wordllama(static_encoder.wordllama_folder(), "cpu").save(str(folder))
    assert averages_words(folder) and read_layout(folder).max_tokens is None
    given, _ = vectors_of()
    own, notes = vectors_of(name=folder)
    torch.testing.assert_close(own, given, rtol=0, atol=1e-3)
    assert notes["encoder"] == str(folder)


def test_the_package_is_asked_for(cpu_settings, monkeypatch, tmp_path):
    monkeypatch.setattr(static_encoder, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'wordllama"):
        encoder.encoder_folder("static")
    given = cpu_settings(kd="warm_start", kd_text_encoder="static")
    with pytest.raises(UserError, match="pip install 'wordllama"):
        run_recbole_prmkd("SASRec", "tiny", config_dict=given)


def test_a_damaged_table_is_named(cpu_settings, monkeypatch, tmp_path):
    folder = tmp_path / "wordllama"
    shutil.copytree(static_encoder.wordllama_folder(), folder, ignore=shutil.ignore_patterns("*.so", "*.py", "*.c"))
    (folder / static_encoder._TABLE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="install wordllama again"):
        static_encoder.load_wordllama(folder, "cpu")


def test_auto_leaves_recformer_out(cpu_settings):
    given = {**cpu_settings(kd="prmkd"), "kd_teachers": "auto", "kd_text_encoder": "static"}
    config = load_config("SASRec", "tiny", config_dict=given)
    assert config["kd_teachers"] == ["Linear", "Content", "UniSRec"]
    assert "starts from a transformer" in " ".join(config.why_teachers)


@pytest.mark.parametrize("name", ["static", "all-MiniLM-L6-v2"])
def test_word_vectors_are_advised_where_a_transformer_is_too_slow(cpu_settings, minilm, monkeypatch, name):
    monkeypatch.setattr(auto, "_TOKENS_PER_SECOND", (1e-6, 1e-6))
    given = {**cpu_settings(kd="prmkd"), "kd_teachers": "auto", "kd_text_encoder": name}
    why = " ".join(load_config("SASRec", "tiny", config_dict=given).why_teachers)
    assert "the only teacher" in why and ("kd_text_encoder=static" in why) == (name != "static")


def test_a_run_with_word_vectors(cpu_settings, tmp_path):
    given = cpu_settings(kd="mean", kd_teachers=["Content"], kd_text_encoder="static", kd_item_init="text")
    run_recbole_prmkd("SASRec", "tiny", config_dict=given)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["teachers"]["Content"]["test_unseen"]
