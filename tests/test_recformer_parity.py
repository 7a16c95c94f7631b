"""Recformer's fine-tuning side against numbers of the official code."""

import numpy as np
import pytest
import torch
from recbole.evaluator.metrics import MRR, NDCG, Recall
from recformer_parity import (
    CHECKPOINTS,
    FOLDER,
    build_model,
    check_gradients,
    close,
    equal,
    interaction,
    needs_parity,
    official_batch,
    official_settings,
    read_parity,
    write_encoder,
)
from safetensors.torch import load_file

pytestmark = needs_parity


@pytest.fixture(scope="module")
def parity():
    return read_parity()


@pytest.fixture(scope="module")
def build(parity, tmp_path_factory):
    """A function: our model with the weights of a checkpoint."""
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(parity, folder)
    return lambda checkpoint: build_model(parity.texts, folder, checkpoint, **official_settings(parity))


@pytest.fixture
def model(build):
    return build(FOLDER / "weights.safetensors")


@pytest.fixture
def batch(parity):
    return interaction(parity.histories, parity.inputs["labels"])


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
    check_gradients(model, parity, "finetune.full_softmax_loss")


def test_sampled_softmax_loss(model, parity, batch):
    items = model.encode_items()
    candidates = torch.cat([batch["item_id"][:, None], parity.inputs["negatives"] + 1], dim=1)
    histories = model.encode_batch(batch, items)
    close(model.sampled_loss(histories, items[candidates]), parity.outputs["finetune.sampled_softmax_loss"])


def test_ranking_metrics(model, parity, batch):
    """RecBole's own metrics on our scores; the official AUC divides by all items, not by the others."""
    with torch.no_grad():
        scores = model.full_sort_predict(batch)[:, 1:]
    number = scores.shape[1]
    rank = (scores > scores.gather(1, parity.inputs["labels"][:, None])).sum(1).numpy()  # [B]
    found = np.arange(number) == rank[:, None]  # [B, n_items - 1], the target in the ranked list
    config = {"topk": list(range(1, number + 1)), "metric_decimal_place": 8}
    one = np.ones_like(rank)
    ndcg, recall = NDCG(config).metric_info(found, one).mean(0), Recall(config).metric_info(found, one).mean(0)
    ours = [value for k in (1, 3, 5) for value in (ndcg[k - 1], recall[k - 1])]
    ours += [MRR(config).metric_info(found).mean(0)[-1], (1 - rank / number).mean()]
    close(torch.tensor(ours), parity.outputs["ranker"])


def test_state_dict_equals_the_official_one(model):
    official = load_file(FOLDER / "weights.safetensors")
    model.longformer.load_state_dict(official)  # names and shapes are equal, or this raises
    float_ids = {**official, "embeddings.position_ids": official["embeddings.position_ids"].float()}
    model.longformer.load_state_dict(float_ids)
    assert model.longformer.embeddings.position_ids.dtype == torch.int64
