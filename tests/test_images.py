"""Item images: an .npz and a folder give vectors by internal item id; each mistake is one sentence."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import recbole
import torch
from PIL import Image
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ViTConfig, ViTImageProcessor, ViTModel

from recbole_prmkd.data import images
from recbole_prmkd.data.images import check_images, item_image_vectors
from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import encoding_jobs

POSTERS = Path(__file__).parents[2] / "shared" / "data" / "ml-100k-posters" / "ml-100k.image.npz"
TOKENS = ["[PAD]", "b", "a", "7", "none"]
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**TINY, "image_size": 32, "patch_size": 16}


def dataset(tokens=TOKENS):
    return SimpleNamespace(iid_field="item_id", field2id_token={"item_id": np.array(tokens)})


@pytest.fixture
def settings(tmp_path):
    """A config as far as images read it; no source yet."""
    return {
        "kd_item_images": None,
        "kd_image_encoder": str(tmp_path / "encoder"),
        "kd_cache_dir": str(tmp_path / "cache"),
        "kd_rebuild": False,
        "kd_encode_precision": "auto",
        "dataset": "toy",
        "device": torch.device("cpu"),
        "ITEM_ID_FIELD": "item_id",
    }


@pytest.fixture
def npz(tmp_path, settings):
    """Writes an .npz and returns the settings that name it."""

    def write(**arrays):
        np.savez(tmp_path / "images.npz", **arrays)
        return {**settings, "kd_item_images": str(tmp_path / "images.npz")}

    return write


def save_encoder(folder, **kwargs):
    torch.manual_seed(3)
    ViTModel(ViTConfig(**VISION), **kwargs).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


@pytest.fixture
def folder(tmp_path, settings):
    """Settings with a folder of pictures: of b (two, one grey), of a (palette), and of a stranger."""
    save_encoder(tmp_path / "encoder")
    source = tmp_path / "pictures"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(noise[..., 0]).save(source / "b.png")
    Image.fromarray(noise).save(source / "b.jpg")
    Image.fromarray(noise).convert("P").save(source / "a.PNG")
    Image.fromarray(noise).save(source / "stranger.jpeg")
    (source / "notes.txt").write_text("no picture")
    return {**settings, "kd_item_images": str(source)}


def one_sentence(settings, match, call=item_image_vectors):
    with pytest.raises(UserError, match=match) as caught:
        call(settings, dataset()) if call is item_image_vectors else call(settings)
    text = str(caught.value)
    assert text.endswith(".") and "\n" not in text and ". " not in text


def test_no_source_is_no_images(settings, caplog):
    check_images(settings)
    with caplog.at_level(logging.INFO):
        vectors, present = item_image_vectors(settings, dataset())
    assert vectors.shape == (5, 1) and not vectors.any() and not present.any()
    assert "no images" in caplog.text


def test_npz_by_internal_id(npz, caplog):
    rows = np.array([[1, 2], [3, 4], [5, 6], [0, 0]], dtype=np.float16)
    settings = npz(item_id=np.array(["a", "stranger", "b", "7"]), feat=rows)
    check_images(settings)
    with caplog.at_level(logging.INFO):
        vectors, present = item_image_vectors(settings, dataset())
    assert vectors.dtype == torch.float32
    assert vectors.tolist() == [[0, 0], [5, 6], [1, 2], [0, 0], [0, 0]]  # 7 is zero, none has none
    assert present.tolist() == [False, True, True, False, False]
    assert "2 of 4 items have an image" in caplog.text and "1 image vectors are zero" in caplog.text


def test_integer_ids_repeated_ids_and_bad_rows(npz, caplog):
    rows = np.array([[1.0, 1], [2, 2], [np.nan, 1]])
    vectors, present = item_image_vectors(npz(item_id=np.array([7, 7, 7]), feat=rows), dataset())
    assert vectors[3].tolist() == [1, 1] and present.tolist() == [False, False, False, True, False]
    assert "2 lines repeat an item" in caplog.text
    vectors, present = item_image_vectors(npz(item_id=np.array(["7", "a"]), feat=rows[1:]), dataset())
    assert present.tolist() == [False, False, False, True, False] and torch.isfinite(vectors).all()


def test_pad_has_no_image(npz):
    settings = npz(item_id=np.array(["[PAD]", "a"]), feat=np.ones((2, 3)))
    vectors, present = item_image_vectors(settings, dataset())
    assert not present[0] and not vectors[0].any() and present[2]


def test_npz_mistakes(npz, settings, tmp_path):
    ids, rows = np.array(["a", "b"]), np.ones((2, 3))
    for call in (item_image_vectors, check_images):
        one_sentence({**settings, "kd_item_images": str(tmp_path / "gone.npz")}, "does not exist", call)
        one_sentence(npz(item_id=ids, vectors=rows), "no array feat .it has item_id, vectors", call)
        (tmp_path / "images.npz").write_bytes(b"")
        one_sentence({**settings, "kd_item_images": str(tmp_path / "images.npz")}, "Cannot read", call)
        np.save(tmp_path / "single.npy", rows)
        (tmp_path / "single.npy").rename(tmp_path / "single.npz")
        one_sentence({**settings, "kd_item_images": str(tmp_path / "single.npz")}, "Cannot read", call)
        (tmp_path / "images.csv").write_text("item_id,feat")
        one_sentence({**settings, "kd_item_images": str(tmp_path / "images.csv")}, "neither a folder", call)
    one_sentence(npz(item_id=ids, feat=rows[:1]), "as many rows")
    one_sentence(npz(item_id=ids, feat=rows[0]), "table of numbers")
    one_sentence(npz(item_id=ids, feat=rows.astype(str)), "table of numbers")
    one_sentence(npz(item_id=ids.astype(object), feat=rows), "plain arrays .Object arrays cannot be loaded")
    one_sentence(npz(item_id=np.array(["x", "y"]), feat=rows), "none of the data set's items")
    one_sentence(npz(item_id=ids, feat=rows * 0), "zero or not finite")


def test_a_picture_cut_in_half_is_named_and_absent(folder, caplog):
    source = Path(folder["kd_item_images"])
    whole, _ = item_image_vectors(folder, dataset())
    for name in ("b.jpg", "a.PNG"):
        content = (source / name).read_bytes()
        (source / name).write_bytes(content[: len(content) // 2])
        for _ in range(2):  # also where the vectors are reused
            caplog.clear()
            vectors, present = item_image_vectors(folder, dataset())
            here = [row for row, file in ((1, "b.jpg"), (2, "a.PNG")) if file != name]
            assert torch.nonzero(present).flatten().tolist() == here and not vectors[~present].any()
            torch.testing.assert_close(vectors[here], whole[here], rtol=1e-4, atol=1e-5)
            assert "1 pictures cannot be read or have no finite vector, so" in caplog.text and name in caplog.text
        (source / name).write_bytes(content)


def test_what_is_taken_of_several_pictures_is_said(folder, caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        caplog.clear()
        item_image_vectors(folder, dataset())
        assert "1 items have several pictures; taken is b.jpg (not b.png)." in caplog.text
        assert "pooling its own pooled output." in caplog.text
    manifest = next(Path(folder["kd_cache_dir"]).rglob("manifest.json"))
    assert json.loads(manifest.read_text())["notes"]["pooling"] == "its own pooled output"


def test_an_encoder_that_gives_one_vector_is_refused(folder):
    encoder = Path(folder["kd_image_encoder"])
    for name in "cdefg":
        noise = np.random.default_rng(ord(name)).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(noise).save(Path(folder["kd_item_images"]) / f"{name}.png")
    model = ViTModel.from_pretrained(encoder)
    torch.nn.init.zeros_(model.pooler.dense.weight)
    model.save_pretrained(encoder)
    with pytest.raises(UserError, match="gave 1 vectors for 7 different pictures"):
        item_image_vectors(folder, dataset([*TOKENS, *"cdefg"]))
    assert not list(Path(folder["kd_cache_dir"]).rglob("manifest.json"))


def test_image_encoder_in_a_folder_of_the_hubs_cache(folder, tmp_path):
    vectors, _ = item_image_vectors(folder, dataset())
    (tmp_path / "hub" / "snapshots").mkdir(parents=True)
    shutil.move(folder["kd_image_encoder"], tmp_path / "hub" / "snapshots" / "abc")
    again, _ = item_image_vectors({**folder, "kd_image_encoder": str(tmp_path / "hub")}, dataset())
    assert torch.equal(vectors, again)


def test_folder_is_encoded_once(folder, monkeypatch, caplog):
    check_images(folder)
    with caplog.at_level(logging.INFO):
        vectors, present = item_image_vectors(folder, dataset())
    assert present.tolist() == [False, True, True, False, False] and "2 of 4 items" in caplog.text
    # The jpg of b, not its png, read in RGB and passed through the model by hand.
    model = ViTModel.from_pretrained(folder["kd_image_encoder"]).eval()
    processor = ViTImageProcessor.from_pretrained(folder["kd_image_encoder"])
    source = Path(folder["kd_item_images"])
    for row, name in ((1, "b.jpg"), (2, "a.PNG")):
        pixels = processor(images=Image.open(source / name).convert("RGB"), return_tensors="pt")
        pooled = model(**pixels).pooler_output[0].detach()
        torch.testing.assert_close(vectors[row], pooled, rtol=1e-4, atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(images, "encode_images", None)  # from here on the cache must serve
        assert torch.equal(item_image_vectors(folder, dataset())[0], vectors)
        shuffled = item_image_vectors(folder, dataset(["[PAD]", "a", "none", "b"]))[0]
    assert torch.equal(shuffled, vectors[[0, 2, 4, 1]])
    Image.new("RGB", (9, 9)).save(source / "a.PNG")  # another picture: encoded anew
    assert not torch.equal(item_image_vectors(folder, dataset())[0][2], vectors[2])
    save_encoder(folder["kd_image_encoder"], add_pooling_layer=False)  # another encoder: encoded anew
    assert not torch.equal(item_image_vectors(folder, dataset())[0][1], vectors[1])


def test_untrained_pooling_is_not_used(folder):
    save_encoder(folder["kd_image_encoder"], add_pooling_layer=False)
    state = torch.get_rng_state()
    vectors, _ = item_image_vectors(folder, dataset())
    assert torch.equal(torch.get_rng_state(), state)
    encoder = Path(folder["kd_image_encoder"])
    files = [Path(folder["kd_item_images"]) / "b.jpg"]
    with encoding_jobs.resumable(encoder, "images", {}, 1, label="Item images") as work:
        again = images.encode_images(files, encoder, folder, work)  # loaded again: the pooling layer is another one
        np.testing.assert_allclose(vectors[1].numpy(), again[0], rtol=1e-4, atol=1e-5)


def test_a_stopped_job_over_pictures_resumes(folder, monkeypatch):
    monkeypatch.setattr(images, "BATCH", 1)
    opened, seen, stop = Image.open, [], [1]

    def look(file):
        if len(seen) == stop[0]:
            raise KeyboardInterrupt
        seen.append(file.name)
        return opened(file)

    monkeypatch.setattr(Image, "open", look)
    with pytest.raises(KeyboardInterrupt):
        item_image_vectors(folder, dataset())
    stop[0] = None
    resumed, _ = item_image_vectors(folder, dataset())
    assert seen == ["a.PNG", "b.jpg"]
    again, _ = item_image_vectors({**folder, "kd_rebuild": True}, dataset())
    assert torch.equal(again, resumed) and len(seen) == 4


def test_half_precision_is_stored_apart(folder):
    full, _ = item_image_vectors(folder, dataset())
    half, _ = item_image_vectors({**folder, "kd_encode_precision": "bfloat16"}, dataset())
    assert not torch.equal(half, full)
    assert (torch.cosine_similarity(half[1:3], full[1:3]) > 0.99).all()
    assert torch.equal(item_image_vectors({**folder, "kd_encode_precision": "float32"}, dataset())[0], full)
    assert len(list(Path(folder["kd_cache_dir"]).glob("toy/images-*"))) == 2


def test_vision_part_of_a_text_and_image_model(folder):
    encoder = Path(folder["kd_image_encoder"])
    text = {**TINY, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
    CLIPModel(CLIPConfig(text_config=text, vision_config=VISION)).save_pretrained(encoder)
    assert item_image_vectors(folder, dataset())[0].shape == (5, 16)


def test_folder_mistakes(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for call in (item_image_vectors, check_images):
        one_sentence({**folder, "kd_item_images": str(tmp_path / "empty")}, "holds no .jpg", call)
        one_sentence({**folder, "kd_image_encoder": str(tmp_path / "empty")}, "holds no vision model", call)
    source = Path(folder["kd_item_images"])
    BertModel(BertConfig(**TINY, vocab_size=9)).save_pretrained(tmp_path / "bert")
    one_sentence({**folder, "kd_image_encoder": str(tmp_path / "bert")}, "Cannot load .*vision model")
    model = ViTModel.from_pretrained(folder["kd_image_encoder"])
    weights = {name: tensor for name, tensor in model.state_dict().items() if "cls_token" not in name}
    model.save_pretrained(tmp_path / "encoder", state_dict=weights)
    one_sentence(folder, "lacks weights of its vision model, such as embeddings.cls_token")
    save_encoder(tmp_path / "encoder")
    for file in source.glob("[ab].*"):
        file.write_bytes(b"no picture")
    one_sentence(folder, r"None of 2 pictures in .* replace .*a\.PNG")
    for file in source.glob("[ab].*"):
        file.unlink()
    one_sentence(folder, "none of the data set's items")


def test_encoder_that_no_hub_gives(folder, monkeypatch):
    def refuse(name, **kwargs):
        raise ConnectionError(name)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    one_sentence({**folder, "kd_image_encoder": "some/model"}, "nor on the hub .ConnectionError")


@pytest.mark.skipif(not POSTERS.is_file(), reason=f"no posters in {POSTERS}")
def test_posters_of_ml_100k(settings):
    file = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.item"
    lines = file.read_text().splitlines()
    tokens = ["[PAD]", *(line.split("\t")[0] for line in lines[1:])]
    vectors, present = item_image_vectors({**settings, "kd_item_images": str(POSTERS)}, dataset(tokens))
    assert vectors.shape == (1683, 256)
    assert int(present.sum()) == 1663


@pytest.mark.parametrize("value", [1e30, 1e300, 1e-40])
def test_vectors_that_overflow_or_vanish_are_counted_or_refused(npz, caplog, value):
    rows = np.ones((2, 3))
    rows[0] = value
    _, present = item_image_vectors(npz(item_id=np.array(["a", "b"]), feat=rows), dataset())
    assert present.tolist() == [False, True, False, False, False] and "1 image vectors are" in caplog.text
    one_sentence(npz(item_id=np.array(["a", "b"]), feat=np.full((2, 3), value)), "zero or not finite")
