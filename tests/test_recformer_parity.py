"""Recformer against numbers of the official code (folder in the environment variable PRMKD_PARITY)."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LongformerConfig, LongformerModel

from recbole_prmkd.teachers import recformer
from recbole_prmkd.teachers.recformer import Recformer
from recbole_prmkd.teachers.recformer_text import TokenBatch

PARITY = Path(os.environ.get("PRMKD_PARITY", Path(__file__).parents[2] / "shared" / "parity"))
FOLDER, CHECKPOINTS = PARITY / "recformer", PARITY / "checkpoints"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no parity data in {FOLDER}")


@pytest.fixture(scope="module")
def parity():
    """Settings, items, sequences, inputs, outputs and gradients of the official run."""
    read = lambda name: dict(np.load(FOLDER / name))  # noqa: E731
    return SimpleNamespace(
        settings=json.loads((FOLDER / "config.json").read_text()),
        texts=[item["attributes"] for item in json.loads((FOLDER / "items.json").read_text())],
        histories=[s["history"] for s in json.loads((FOLDER / "sequences.json").read_text())["sequences"]],
        inputs={key: torch.from_numpy(value) for key, value in read("inputs.npz").items()},
        outputs=read("outputs.npz"),
        gradients=read("gradients.npz"),
    )


@pytest.fixture(scope="module")
def encoder(parity, tmp_path_factory):
    """An untrained Longformer of the official run's size, with its tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("encoder")
    for file in (FOLDER / "tokenizer").iterdir():
        shutil.copy(file, folder)
    names = LongformerConfig().to_dict().keys() & parity.settings.keys() - {"model_type", "transformers_version"}
    config = LongformerConfig(**{name: parity.settings[name] for name in names})
    torch.manual_seed(1)
    LongformerModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture
def build(parity, encoder, monkeypatch):
    """A function: our model with the weights of a checkpoint."""

    def make(checkpoint):
        monkeypatch.setattr(recformer, "item_texts", lambda config, tokens: parity.texts)
        config = {
            "max_attr_num": parity.settings["max_attr_num"],
            "max_attr_length": parity.settings["max_attr_length"],
            "max_token_num": parity.settings["max_token_num"],
            "max_item_embeddings": parity.settings["max_item_embeddings"],
            "MAX_ITEM_LIST_LENGTH": parity.settings["max_item_embeddings"] - 1,
            "attention_window": parity.settings["attention_window"][0],
            "temperature": parity.settings["temp"],
            "pooler_type": parity.settings["pooler_type"],
            "train_word_embeddings": True,
            "negatives": 0,
            "train_stage": None,
            "encode_batch_tokens": 100,  # several batches
            "kd_text_encoder": str(encoder),
            "USER_ID_FIELD": "user_id",
            "ITEM_ID_FIELD": "item_id",
            "LIST_SUFFIX": "_list",
            "ITEM_LIST_LENGTH_FIELD": "item_length",
            "NEG_PREFIX": "neg_",
            "device": "cpu",
        }
        tokens = np.array(["[PAD]", *map(str, range(len(parity.texts)))])
        dataset = SimpleNamespace(
            num=lambda field: len(tokens), iid_field="item_id", field2id_token={"item_id": tokens}
        )
        model = Recformer(config, dataset)
        model.load_checkpoint(checkpoint)
        return model.eval()

    return make


@pytest.fixture
def model(build):
    return build(FOLDER / "weights.safetensors")


@pytest.fixture
def batch(parity):
    """The histories as RecBole gives them: oldest first, right-padded, item ids from 1."""
    lengths = torch.tensor([len(history) for history in parity.histories])
    item_seq = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.int64)
    for row, history in enumerate(parity.histories):
        item_seq[row, : len(history)] = torch.tensor(history, dtype=torch.int64) + 1
    labels = parity.inputs["labels"] + 1
    return {"item_id_list": item_seq, "item_length": lengths, "item_id": labels}


def close(ours, official):
    np.testing.assert_allclose(ours.detach().numpy(), official, rtol=1e-5, atol=1e-5)


def official_batch(parity, name):
    return TokenBatch(*(parity.inputs[f"{name}.{field}"] for field in TokenBatch._fields))


def equal(ours, official):
    for field, mine, theirs in zip(TokenBatch._fields, ours, official, strict=True):
        assert torch.equal(mine, theirs), field


def test_items_are_tokenised_alike(model, parity):
    tokens, inputs = model.item_tokens, parity.inputs
    lengths = inputs["encoded_items.length"]
    assert torch.equal(tokens.start[2:] - tokens.start[1:-1], lengths)
    inside = torch.arange(inputs["encoded_items.input_ids"].shape[1]) < lengths[:, None]
    assert torch.equal(tokens.ids, inputs["encoded_items.input_ids"][inside])
    assert torch.equal(tokens.types, inputs["encoded_items.token_type_ids"][inside])


def test_sequences_are_tokenised_alike(model, parity, batch):
    tokens = model.item_tokens
    items = torch.arange(1, model.n_items)[:, None]
    equal(tokens.batch(items, torch.ones(len(items), dtype=torch.int64)), official_batch(parity, "item_batch"))
    histories = batch["item_id_list"], batch["item_length"]
    equal(tokens.batch(*histories), official_batch(parity, "sequence_batch"))
    padded = official_batch(parity, "sequence_batch_pad_to_max")
    number, width = padded.input_ids.shape
    assert width == tokens.max_tokens
    equal(tokens.batch(*(part[:number] for part in histories), width=width), padded)
    assert torch.equal(tokens.lengths(*histories), parity.inputs["sequence_batch.attention_mask"].sum(1))


@pytest.mark.parametrize("windows", [0, 1000], ids=["stock", "dense"])
def test_encoder(model, parity, windows):
    model.longformer.dense_up_to = windows
    batch = official_batch(parity, "sequence_batch")
    real = batch.attention_mask.bool()
    embedded, hidden = model.longformer.embeddings(batch), model.longformer(batch)
    close(embedded[real], parity.outputs["sequences.embedding_output"][real])
    close(hidden[real], parity.outputs["sequences.last_hidden_state"][real])
    close(hidden[:, 0], parity.outputs["sequences.pooled"])
    close(model.longformer(official_batch(parity, "item_batch"))[:, 0], parity.outputs["items.pooled"])


@pytest.mark.parametrize(
    "checkpoint",
    [
        FOLDER / "weights.safetensors",
        FOLDER / "weights_pretraining.safetensors",
        FOLDER / "weights_seqrec.safetensors",
        CHECKPOINTS / "recformer_ckpt.bin",
        CHECKPOINTS / "recformer_seqrec_ckpt.bin",
    ],
    ids=lambda path: path.name,
)
def test_scores_from_every_checkpoint(checkpoint, build, parity, batch):
    model, outputs = build(checkpoint), parity.outputs
    items = model.encode_items()
    assert not items[0].any() and not items.requires_grad
    close(items[1:], outputs["item_table"])
    with torch.no_grad():
        sorted_batches = model.encode_histories(batch["item_id_list"], batch["item_length"], items)
    close(sorted_batches, outputs["sequences.pooled"])
    cosine = model.full_sort_predict(batch)[:, 1:]
    close(cosine, outputs["cosine"])
    close(cosine / model.temperature, outputs["scores"])
    close(cosine.gather(1, parity.inputs["candidates"]) / model.temperature, outputs["scores_candidates"])
    close(model.predict(batch), outputs["cosine"][np.arange(len(cosine)), parity.inputs["labels"]])


def test_zero_checkpoint_gets_its_word_embeddings_from_the_encoder(build, model, parity, batch):
    ours = build(CHECKPOINTS / "recformer_zero.bin")
    words = ours.longformer.embeddings.word_embeddings.weight
    assert not torch.equal(words, model.longformer.embeddings.word_embeddings.weight)  # the encoder's own
    words.data = load_file(FOLDER / "weights.safetensors")["embeddings.word_embeddings.weight"]
    close(ours.full_sort_predict(batch)[:, 1:], parity.outputs["cosine"])


@pytest.mark.parametrize("windows", [0, 1000], ids=["stock", "dense"])
def test_fine_tuning_loss_and_gradients(model, parity, batch, windows):
    model.longformer.dense_up_to = windows
    loss = model.calculate_loss(batch)
    close(loss, parity.outputs["finetune.full_softmax_loss"])
    loss.backward()
    mark = "finetune.full_softmax_loss|"
    official = {k.removeprefix(mark): v for k, v in parity.gradients.items() if k.startswith(mark)}
    assert official
    for name, gradient in official.items():
        close(model.get_parameter(name).grad, gradient)


def test_state_dict_equals_the_official_one(model):
    official = load_file(FOLDER / "weights.safetensors")
    model.longformer.load_state_dict(official)  # names and shapes are equal, or this raises
    float_ids = {**official, "embeddings.position_ids": official["embeddings.position_ids"].float()}
    model.longformer.load_state_dict(float_ids)
    assert model.longformer.embeddings.position_ids.dtype == torch.int64
