"""Encoder folders in every layout: read, or refused with what to give instead; no encoder that encodes nothing."""

import json
import shutil

import pytest
import torch
from test_text import config_of, written

from recbole_prmkd.data import encoder, text
from recbole_prmkd.data.encoder_layout import read_layout
from recbole_prmkd.errors import UserError

TEXTS = ["red pen", "blue pen", "a long story of the cat", "dog", "the red house", "car wheel", "green tea", "12 34"]


@pytest.fixture
def folder(minilm, tmp_path):
    """A copy of MiniLM without some of its files; below=: at this place in it."""

    def make(*without, below=".", name="encoder"):
        target = tmp_path / name / below
        shutil.copytree(minilm, target)
        for part in without:
            shutil.rmtree(target / part) if (target / part).is_dir() else (target / part).unlink()
        return tmp_path / name

    return make


@pytest.fixture
def prepared(cpu_settings, tmp_path):
    """Encodes texts by the encoder in a folder; returns the notes, and whether the vectors were there."""

    def prepare(encoder_folder, texts=TEXTS, **more):
        file, tokens = written(tmp_path, texts)
        given = {"kd_text_file": file, "kd_cache_dir": str(tmp_path / "cache"), "kd_text_encoder": str(encoder_folder)}
        notes = {}
        reused = text.prepare_item_text(config_of(cpu_settings, **given, **more), tokens, notes=notes)
        return notes, reused

    return prepare


PLAIN = ["modules.json", "1_Pooling", "sentence_bert_config.json", "config_sentence_transformers.json"]


def test_a_complete_folder(folder, prepared):
    notes, reused = prepared(folder())
    assert not reused and notes["pooling"] == "mean, Normalize"
    assert (notes["encoder_limit"], notes["max_tokens"], notes["texts"], notes["cut"]) == (256, 256, 8, 0)


def test_a_plain_transformers_model_is_pooled_by_the_mean(folder, prepared, caplog):
    caplog.set_level("INFO")
    notes, _ = prepared(folder(*PLAIN), kd_text_max_tokens=1000)
    assert notes["pooling"] == "mean" and notes["encoder_limit"] == notes["max_tokens"] == 512
    assert "pooling mean, at most 512 tokens each" in caplog.text


@pytest.mark.parametrize("refs", [True, False])
def test_a_folder_of_the_hubs_cache(folder, prepared, refs):
    place = folder(below="snapshots/abc", name="models--x--y")
    if refs:
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text("abc\n")
        shutil.copytree(place / "snapshots" / "abc", place / "snapshots" / "older")
    assert encoder.encoder_folder(str(place)) == place / "snapshots" / "abc"
    assert prepared(place)[1] is False
    assert prepared(place / "snapshots" / "abc")[1] is True  # the same encoder by another name


def test_several_snapshots_without_a_reference(folder):
    place = folder(below="snapshots/abc", name="models--x--y")
    shutil.copytree(place / "snapshots" / "abc", place / "snapshots" / "older")
    with pytest.raises(UserError, match=r"name .*/snapshots/abc or one of 1 others"):
        encoder.encoder_folder(str(place))


def test_the_folder_above(folder):
    place = folder(below="models--x--y/snapshots/abc", name="hub")
    with pytest.raises(UserError, match=r"holds no model itself: name .*/models--x--y with --kd_text_encoder"):
        encoder.encoder_folder(str(place))


INCOMPLETE = {
    "model.safetensors": "lacks the weights",
    "config.json": "lacks config.json",
    "1_Pooling": "lacks 1_Pooling/config.json, which its modules.json names",
}


@pytest.mark.parametrize("part", INCOMPLETE)
def test_an_incomplete_folder(folder, prepared, part):
    with pytest.raises(UserError, match=INCOMPLETE[part]) as caught:
        prepared(folder(part))
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "model.gguf"])
def test_a_folder_without_a_model(tmp_path, name):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / name).write_text("{}")
    adapter = "but an adapter, which must be merged" if "adapter" in name else "holds no encoder .no config.json"
    with pytest.raises(UserError, match=adapter):
        encoder.encoder_folder(str(tmp_path / "other"))


def test_a_missing_part_of_the_weights(folder):
    place = folder("model.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks model-00001-of-00002.safetensors"):
        encoder.encoder_folder(str(place))


def test_a_pointer_in_place_of_the_weights(folder):
    place = folder()
    (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="Git LFS pointer, not the weights: run git lfs pull"):
        encoder.encoder_folder(str(place))


def test_damaged_weights(folder, prepared):
    place = folder()
    (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"Cannot load .* as a text encoder"):
        prepared(place)


def test_weights_that_lack_a_tensor(tiny_encoder, tmp_path, prepared):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_encoder, tmp_path / "tiny")
    weights = load_file(tmp_path / "tiny" / "model.safetensors")
    left = {name: tensor for name, tensor in weights.items() if "layer.1.attention.self.query" not in name}
    save_file(left, tmp_path / "tiny" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of its model, such as .*layer\.1\.attention\.self\.query"):
        prepared(tmp_path / "tiny")


def test_no_vocabulary(folder, prepared, tmp_path):
    with pytest.raises(UserError, match="reads no word of 8 of 8 texts: copy its vocabulary"):
        prepared(folder("tokenizer.json", "vocab.txt"))
    assert not list((tmp_path / "cache").rglob("vectors.npy"))


def test_a_few_texts_of_another_script_are_counted(folder, prepared, caplog):
    prepared(folder(), texts=[*TEXTS, "\u1200\u1201", "\u1208\u1210"])
    assert "reads no word of 2 of 10 texts" in caplog.text
    assert "1 texts have the vector of another text" in caplog.text


def test_an_encoder_that_gives_one_vector(tiny_encoder, tmp_path, prepared):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_encoder, tmp_path / "tiny")
    weights = load_file(tmp_path / "tiny" / "model.safetensors")
    last = {name: torch.zeros_like(t) if "LayerNorm.weight" in name else t for name, t in weights.items()}
    save_file(last, tmp_path / "tiny" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="gave 1 vectors for 8 different texts"):
        prepared(tmp_path / "tiny")


def test_texts_that_differ_in_case_or_behind_the_limit_are_counted(folder, prepared, caplog):
    notes, _ = prepared(
        folder(), texts=[*TEXTS, "Red Pen", "word " * 40 + "a", "word " * 40 + "b"], kd_text_max_tokens=16
    )
    assert notes["cut"] == 2 and "2 texts have the vector of another text" in caplog.text
    with pytest.raises(UserError, match="tells only 2 of 8 different texts apart"):
        prepared(
            folder(name="again"), texts=["dog", *("word " * 40 + name for name in "abcdefg")], kd_text_max_tokens=16
        )


def test_a_limit_above_the_encoders_own_changes_nothing(folder, prepared, caplog):
    texts, place = [*TEXTS, "word " * 300], folder()
    for asked, reused in ((256, False), (512, True), (4096, True)):
        caplog.clear()
        notes, found = prepared(place, texts=texts, kd_text_max_tokens=asked)
        assert found is reused and notes["max_tokens"] == 256 and notes["cut"] == 1
        assert "1 of 9 item texts are longer than 256 tokens and were cut: the encoder reads no more" in caplog.text
        assert "raise --kd_text_max_tokens" not in caplog.text
    prepared(place, texts=texts, kd_text_max_tokens=64)
    assert "raise --kd_text_max_tokens" in caplog.text


def test_pooling_is_part_of_the_identity(folder, prepared, tmp_path):
    place = folder()
    prepared(place)
    config = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (place / "1_Pooling" / "config.json").write_text(json.dumps(config))
    notes, reused = prepared(place)
    assert not reused and notes["pooling"] == "cls, Normalize"
    found = {
        json.loads(file.read_text())["identity"]["pooling"] for file in (tmp_path / "cache").rglob("manifest.json")
    }
    assert found == {"mean, Normalize", "cls, Normalize"}


def test_pooling_of_new_configurations(folder):
    place = folder()
    (place / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 384, "pooling_mode": ["cls", "max"]}')
    assert read_layout(place).pooling == "cls+max, Normalize"
    (place / "1_Pooling" / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"Cannot read .*download the model again"):
        read_layout(place)
