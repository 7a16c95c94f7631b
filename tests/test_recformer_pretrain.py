"""Recformer's pre-training: numbers of the official code, whole-word masking, what is trained and what is saved."""

from types import SimpleNamespace

import pytest
import torch
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
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.checkpoints import read_checkpoint
from recbole_prmkd.teachers.contrastive import in_batch_scores, info_nce
from recbole_prmkd.teachers.fit import learnt_weights
from recbole_prmkd.teachers.mlm import NOT_MASKED, Masked, WordMasking, mask_words, word_continuations
from recbole_prmkd.teachers.recformer_text import TokenBatch

# ---- against the official code


@pytest.fixture(scope="module")
def parity():
    return read_parity()


@pytest.fixture(scope="module")
def official(parity, tmp_path_factory):
    """A function: our model for pre-training with the weights of a checkpoint, in evaluation mode."""
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(parity, folder)

    def make(checkpoint=FOLDER / "weights_pretraining.safetensors", train_stage="pretrain"):
        return build_model(parity.texts, folder, checkpoint, **official_settings(parity), train_stage=train_stage)

    return make


@needs_parity
def test_word_boundaries(official, parity):
    continues = official().word_masking.continues_word[parity.inputs["sequence_batch.input_ids"]]
    assert torch.equal(continues.long(), parity.inputs["sequence_batch.mlm_is_subword"])


@needs_parity
@pytest.mark.parametrize("windows", [0, 1000], ids=["stock", "dense"])
def test_losses_logits_and_gradients(official, parity, windows):
    model, outputs = official(), parity.outputs
    model.longformer.dense_up_to = windows
    batches, masks = [], []
    for side in ("a", "b"):
        batches.append(official_batch(parity, "pretrain", f"_{side}"))
        masks.append(Masked(*(parity.inputs[f"pretrain.mlm_{part}_{side}"] for part in ("input_ids", "labels"))))
        hidden = model.longformer(batches[-1]._replace(input_ids=masks[-1].input_ids))
        close(model.lm_head(hidden[masks[-1].labels != NOT_MASKED]), outputs[f"pretrain.mlm_logits_{side}"])
    targets = torch.tensor([target for _, target in parity.pairs]) + 1
    assert len(targets.unique()) < len(targets)  # so that it matters that equal targets are kept
    parts = model.pretrain_parts(*batches, targets, *masks)
    close(parts.scores, outputs["pretrain.logits"])
    assert int((parts.scores.argmax(1) == torch.arange(len(targets))).sum()) == outputs["pretrain.correct"]
    close(parts.contrastive, outputs["pretrain.contrastive_loss"])
    close(parts.mlm_histories, outputs["pretrain.mlm_loss_a"])
    close(parts.mlm_items, outputs["pretrain.mlm_loss_b"])
    close(parts.total, outputs["pretrain.total_loss"])
    parts.total.backward()
    check_gradients(model, parity, "pretrain.total_loss")


@needs_parity
def test_vectors_of_an_interaction(official, parity):
    model = official()
    batch = interaction(*zip(*parity.pairs, strict=True))
    equal(
        model.item_tokens.batch(batch["item_id_list"], batch["item_length"]), official_batch(parity, "pretrain", "_a")
    )
    close(in_batch_scores(*model.pretrain_vectors(batch), model.temperature), parity.outputs["pretrain.logits"])


@needs_parity
@pytest.mark.parametrize(
    "checkpoint",
    [
        FOLDER / "weights_pretraining.safetensors",
        CHECKPOINTS / "recformer_seqrec_ckpt.bin",
        CHECKPOINTS / "recformer_zero.bin",
    ],
    ids=lambda path: path.name,
)
def test_head_from_every_checkpoint(checkpoint, official):
    head, given = official(checkpoint).lm_head, read_checkpoint(checkpoint)
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, given.get(f"lm_head.{name}", given.get(f"_forward_module.model.lm_head.{name}")))
    assert head.bias is head.decoder.bias


@needs_parity
def test_checkpoints_without_a_head_or_with_a_stray_weight(official, tmp_path):
    fresh = official(FOLDER / "weights.safetensors").lm_head
    assert not fresh.bias.any() and not fresh.dense.bias.any() and fresh.dense.weight.std() < 0.03
    weights = load_file(FOLDER / "weights_pretraining.safetensors")
    save_file({**weights, "lm_head.weight": torch.ones(3, 2)}, tmp_path / "c.safetensors")
    head = official(tmp_path / "c.safetensors").lm_head
    assert torch.equal(head.decoder.weight, weights["lm_head.decoder.weight"])
    assert not any("lm_head" in name for name in official(train_stage=None).state_dict())


# ---- masking

VOCABULARY, MASK = 5000, 4


def tokens(lengths, width=None, generator=None):
    """Random tokens of sequences with these lengths, <s> (0) included; padding is 1."""
    lengths = torch.tensor(lengths)
    width = width or int(lengths.max())
    real = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(5, VOCABULARY, real.shape, generator=generator) * real + (1 - real)
    ids[:, 0] = 0
    first = torch.zeros_like(real)
    first[:, 0] = 1
    return TokenBatch(ids, real, real, real, first)


@pytest.fixture
def continues():
    """A random half of the tokens continue a word."""
    return torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(1)) < 0.5


def words(batch, continues):
    """Of each sequence, the positions of each word's tokens."""
    rows = []
    for ids, length in zip(batch.input_ids.tolist(), batch.attention_mask.sum(1).tolist(), strict=True):
        row = []
        for position in range(1, length):
            if position == 1 or not continues[ids[position]]:
                row.append([])
            row[-1].append(position)
        rows.append(row)
    return rows


def masks(batch, continues, seed=0, probability=0.15):
    return mask_words(batch, continues, MASK, probability, torch.Generator().manual_seed(seed))


def test_whole_words_and_nothing_else(continues):
    batch = tokens([1, 2, 3, 4, 9, 30, 64, 100, 100, 17], width=110)
    before = [part.clone() for part in batch]
    for seed in range(20):
        masked = masks(batch, continues, seed)
        chosen = masked.labels != NOT_MASKED
        assert torch.equal(masked.labels[chosen], batch.input_ids[chosen])
        assert torch.equal(masked.input_ids[~chosen], batch.input_ids[~chosen])
        assert not chosen[:, 0].any() and not chosen[~batch.attention_mask.bool()].any()
        for row, positions in zip(chosen.tolist(), words(batch, continues), strict=True):
            whole = [{row[position] for position in word} for word in positions]
            assert all(len(state) == 1 for state in whole)
            assert {True} in whole or not positions
    assert all(torch.equal(a, b) for a, b in zip(batch, before, strict=True))


@pytest.mark.parametrize("probability", [0.15, 0.3])
def test_share_of_the_real_tokens(continues, probability):
    """Padding takes no part: each sequence is within half a word of its own share, and they are equal on average."""
    batch = tokens([80 + row for row in range(200)], width=600)
    chosen = (masks(batch, continues, probability=probability).labels != NOT_MASKED).sum(1)
    share = probability * (batch.attention_mask.sum(1) - 1)
    max_length = torch.tensor([max(map(len, row)) for row in words(batch, continues)])
    assert (max_length <= 2 * share).all()
    assert ((chosen - share).abs() <= max_length / 2).all()
    assert abs(chosen.sum() / share.sum() - 1) < 0.01


def test_every_word_is_as_likely():
    batch, alone = tokens([21] * 4000), torch.zeros(VOCABULARY, dtype=torch.bool)
    often = (masks(batch, alone).labels != NOT_MASKED).float().mean(0)
    assert often[0] == 0 and (often[1:] - 0.15).abs().max() < 0.03


def test_words_beyond_the_share():
    """Too long a word is left alone, unless there are none but such; then the shortest is masked."""
    continues = torch.zeros(VOCABULARY, dtype=torch.bool)
    continues[100:] = True
    lengths = [[9, 1], [9], [5, 4], [9, 1]]
    batch = tokens([1 + sum(row) for row in lengths], width=15)
    batch.input_ids[:, 1:] = 200
    for row, sizes in enumerate(lengths):
        position = 1
        for size in sizes:
            batch.input_ids[row, position] = 50
            position += size
    batch.input_ids[3, 1] = 200  # the first token begins a word though it is one that continues
    for seed in range(5):
        labels = masks(batch, continues, seed).labels
        positions = [torch.nonzero(row != NOT_MASKED).flatten().tolist() for row in labels]
        assert positions == [[10], list(range(1, 10)), [6, 7, 8, 9], [10]]


def test_eighty_ten_ten(continues):
    batch = tokens([200] * 1000)
    masked = masks(batch, continues)
    chosen = masked.labels != NOT_MASKED
    shown, label = masked.input_ids[chosen], masked.labels[chosen]
    assert len(shown) > 25_000
    for share, wanted in (((shown == MASK), 0.8), ((shown == label), 0.1), ((shown != MASK) & (shown != label), 0.1)):
        assert abs(share.float().mean() - wanted) < 0.01
    assert len(shown[(shown != MASK) & (shown != label)].unique()) > 1000  # from the whole vocabulary


def test_same_generator_same_masks(continues):
    batch = tokens([50] * 8)
    first, again, other = masks(batch, continues, 1), masks(batch, continues, 1), masks(batch, continues, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.labels, other.labels)
    torch.manual_seed(3)  # without a generator torch's own is used
    masked = mask_words(batch, continues, MASK, 0.15)
    torch.manual_seed(3)
    assert torch.equal(mask_words(batch, continues, MASK, 0.15).labels, masked.labels)


@pytest.mark.parametrize(
    ("vocabulary", "continuing"),
    [
        (["[PAD]", "[MASK]", "pen", "##s", "##!", "!", "##", "Ġ"], {"##s", "##!", "##"}),
        (["<s>", "<mask>", "Ġpen", "s", "Ġ", "!", "+", "Ã©", "##", "pen"], {"s", "Ã©", "pen"}),
        (["<s>", "<mask>", "▁pen", "s", "▁", "!", "，", "pen"], {"s", "pen"}),
    ],
    ids=["WordPiece", "byte-level BPE", "SentencePiece"],
)
def test_tokens_that_continue_a_word(vocabulary, continuing):
    numbers = {token: number for number, token in enumerate(vocabulary)}
    table = word_continuations(SimpleNamespace(get_vocab=lambda: numbers))
    assert {token for token in vocabulary if table[numbers[token]]} == continuing


def test_tokenizers_and_settings_that_cannot_mask():
    tokenizer = SimpleNamespace(get_vocab=lambda: {"a": 0, "[MASK]": 1}, mask_token_id=1)
    assert not WordMasking(tokenizer, 0.15).state_dict()
    for probability in (0, 1, 1.5):
        with pytest.raises(UserError, match="mlm_probability"):
            WordMasking(tokenizer, probability)
    tokenizer.mask_token_id = None
    with pytest.raises(UserError, match="no mask token"):
        WordMasking(tokenizer, 0.15)


# ---- the model

TEXTS = [{"title": f"{a} {b}s", "brand": b} for a in ("red", "blue") for b in ("pen", "cup", "lamp")] + [{}]
ROWS = interaction([[0, 1], [2], [3, 4, 5, 0], [5, 1]], [2, 3, 1, 2])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An untrained BERT of 2 layers with a small WordPiece vocabulary."""
    folder = tmp_path_factory.mktemp("tiny")
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "title",
        "brand",
        "red",
        "blue",
        "pen",
        "cup",
        "lamp",
        "##s",
    ]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(pieces), **sizes, initializer_range=0.5)).save_pretrained(folder)
    return folder


@pytest.fixture
def build(encoder):
    def make(**changes):
        return build_model(TEXTS, encoder, **{"train_stage": "pretrain", "attention_window": 8, **changes})

    return make


def test_head_starts_from_the_word_embeddings(build):
    model = build()
    words = model.longformer.embeddings.word_embeddings.weight
    assert torch.equal(model.lm_head.decoder.weight, words) and model.lm_head.decoder.weight is not words
    assert not model.lm_head.bias.any() and model.lm_head.bias is model.lm_head.decoder.bias


def test_four_passes_or_two(build):
    encoding_jobs = []
    for weight in (0.1, 0):
        model = build(mlm_weight=weight)
        model.longformer.register_forward_hook(lambda *_: encoding_jobs.append(1))
        loss = model.calculate_loss(ROWS)
        assert len(encoding_jobs) == (4 if weight else 2)
        encoding_jobs.clear()
    assert model.lm_head is None
    scores = in_batch_scores(*model.pretrain_vectors(ROWS), model.temperature)
    torch.testing.assert_close(loss, info_nce(scores, ROWS["item_id"], "keep"))


@pytest.mark.parametrize("train_words", [False, True])
def test_what_the_language_model_trains(build, train_words):
    model = build(train_word_embeddings=train_words)
    batch = model.item_tokens.batch(ROWS["item_id_list"], ROWS["item_length"])
    masked = model.word_masking(batch)
    model.pretrain_parts(batch, batch, ROWS["item_id"], masked, masked).mlm_histories.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert ("longformer.embeddings.word_embeddings.weight" in trained) == train_words
    assert {"lm_head.decoder.weight", "lm_head.bias", "lm_head.dense.weight", "lm_head.layer_norm.weight"} <= trained
    for layer in range(2):
        assert f"longformer.encoder.layer.{layer}.attention.self.query.weight" in trained
    assert not any(name.startswith(("item_embedding", "item_tokens")) for name in trained)


def test_the_item_table_plays_no_part(build, monkeypatch):
    model = build().train()
    for name in ("encode_items", "refresh_items"):
        monkeypatch.setattr(model, name, lambda: pytest.fail("the item table was made"))
    model.calculate_loss(ROWS).backward()
    assert not model.item_embedding.weight.any()


def test_targets_without_text(build):
    """Nothing can be masked: the language model's loss is 0, not the mean of nothing."""
    model = build()
    nothing = len(TEXTS) - 1
    batch = interaction([[nothing], [nothing, nothing]], [nothing, nothing])
    scores = in_batch_scores(*model.pretrain_vectors(batch), model.temperature)
    torch.testing.assert_close(model.calculate_loss(batch), info_nce(scores, batch["item_id"], "keep"))


def test_masks_are_drawn_anew_by_the_seed(build):
    model = build()
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(float(model.calculate_loss(ROWS)))
    assert losses[0] == losses[2] != losses[1]


def test_saved_weights_start_a_fine_tuning(build, tmp_path):
    model = build()
    fine_tuned = build(train_stage=None)
    names = {f"lm_head.{name}" for name in model.lm_head.state_dict()}
    assert model.state_dict().keys() - fine_tuned.state_dict().keys() == names
    with torch.no_grad():
        for parameter in [*model.longformer.parameters(), *model.lm_head.parameters()]:
            parameter.mul_(1.5)
    saved = learnt_weights(model)
    save_file({name: tensor.clone() for name, tensor in saved.items()}, tmp_path / "Recformer.safetensors")
    again = build()
    for other in (fine_tuned, again):
        other.load_checkpoint(tmp_path / "Recformer.safetensors")
        assert all(
            torch.equal(tensor, saved[f"longformer.{name}"]) for name, tensor in other.longformer.state_dict().items()
        )
    assert all(torch.equal(tensor, saved[f"lm_head.{name}"]) for name, tensor in again.lm_head.state_dict().items())
