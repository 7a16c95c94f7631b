"""Recformer without the parity data: conversion, tokens, two-stage training, checkpoints, full size."""

import itertools
import shutil

import pytest
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import init_seed
from recformer_parity import build_model
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LongformerConfig,
)

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import defaults, properties_dir, read_yaml
from recbole_prmkd.teachers import recformer
from recbole_prmkd.teachers.bucketing import by_length
from recbole_prmkd.teachers.checkpoints import read_encoder
from recbole_prmkd.teachers.longformer import RecformerModel
from recbole_prmkd.teachers.recformer import Recformer
from recbole_prmkd.teachers.recformer_text import ItemTokens
from recbole_prmkd.teachers.recformer_trainer import RecformerTrainer, SampledExamples

WORDS = ["red", "blue", "old", "new", "pen", "cup", "lamp", "desk", "tape", "glue", "sock", "mug"]
TEXTS = [{"title": f"{a} {b}", "brand": b} for a in WORDS[:4] for b in WORDS[4:]]  # 32 items


def settings(folder, **changes):
    return {
        **defaults(),
        **read_yaml(properties_dir() / "model" / "Recformer.yaml"),
        "kd_text_encoder": str(folder),
        "attention_window": 8,
        "MAX_ITEM_LIST_LENGTH": 6,
        "max_item_embeddings": 8,
        **changes,
    }


def build(folder, texts=TEXTS, **changes):
    """Recformer without RecBole's Config and data set."""
    return build_model(texts, folder, **settings(folder, **changes)).train()


def histories(number=20, max_length=9):
    """Random histories of every length from 0 to `max_length`."""
    lengths = torch.arange(number) % (max_length + 1)
    items = torch.randint(1, len(TEXTS) + 1, (number, max_length), generator=torch.Generator().manual_seed(2))
    return items * (torch.arange(max_length) < lengths[:, None]), lengths


def test_converted_minilm_gives_berts_own_output(minilm):
    """A text no longer than half a window is seen as a whole; item positions are still zero."""
    texts = ["Toy Story", "a red pen", "the quick brown fox jumps over the lazy dog", "Copper kettle, 1.2 l"]
    kind, config, weights = read_encoder(minilm, window=32, max_tokens=256, item_positions=51)
    assert kind == "bert"
    ours = RecformerModel(config, 51, window=32).eval()
    ours.load_state_dict(weights)
    bert, tokenizer = AutoModel.from_pretrained(str(minilm)).eval(), AutoTokenizer.from_pretrained(str(minilm))
    items = ItemTokens(
        tokenizer,
        [{"title": text} for text in texts],
        max_attr_num=3,
        max_attr_length=32,
        max_items=10,
        max_tokens=256,
        item_positions=51,
    )
    batch = items.batch(torch.arange(1, 5)[:, None], torch.ones(4, dtype=torch.int64))
    real = batch.attention_mask.bool()
    assert real.sum(1).max() <= 17
    with torch.no_grad():
        theirs = bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        for ours.dense_up_to in (0, 8):
            assert cosine_similarity(ours(batch)[real], theirs[real]).min() >= 0.99999


def test_positions_beyond_the_encoders_repeat_its_own(tiny_encoder):
    _, config, weights = read_encoder(tiny_encoder, window=8, max_tokens=150, item_positions=8)
    positions = weights["embeddings.position_embeddings.weight"][1:]  # row 0 is padding
    assert config.max_position_embeddings == 151 and len(positions) == 150
    assert torch.equal(positions[64:128], positions[:64]) and torch.equal(positions[128:], positions[:22])


def test_tokens_are_as_drawn_in_the_docstring(minilm):
    tokenizer = AutoTokenizer.from_pretrained(str(minilm))
    limits = {"max_attr_num": 1, "max_attr_length": 3, "max_items": 2, "item_positions": 11}
    texts = [{"title": "blue cup", "brand": "x"}, {"title": "red pen"}, {"title": ""}]
    items = ItemTokens(tokenizer, texts, max_tokens=6, **limits)
    a, b = 1, 2
    batch = items.batch(torch.tensor([[3, a, b], [a, 0, 0]]), torch.tensor([3, 1]))
    words = [tokenizer.convert_ids_to_tokens(row) for row in batch.input_ids.tolist()]
    assert words[0] == ["[CLS]", "title", "red", "pen", "title", "blue"]  # cut to 2 items, then to 6 tokens
    assert words[1] == ["[CLS]", "title", "blue", "cup", "[PAD]", "[PAD]"]
    assert batch.token_type_ids.tolist() == [[0, 1, 2, 2, 1, 2], [0, 1, 2, 2, 3, 3]]
    assert batch.item_position_ids.tolist() == [[0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 10, 10]]
    assert items.covered().tolist() == [False, True, True, False]


def test_batches_hold_each_sequence_once_within_the_budget():
    lengths = torch.randint(1, 90, (500,), generator=torch.Generator().manual_seed(3))
    batches = list(by_length(lengths, 80))
    assert sorted(torch.cat(batches).tolist()) == list(range(500))
    assert all(len(b) == 1 or len(b) * int(lengths[b].max()) <= 80 for b in batches)


def test_dense_attention_equals_the_stock_encoder(tiny_encoder):
    model = build(tiny_encoder).eval()
    batch = model.item_tokens.batch(*histories())
    real = batch.attention_mask.bool()
    model.longformer.dense_up_to = 0
    stock = model.longformer(batch)[real]
    model.longformer.dense_up_to = 1000
    torch.testing.assert_close(model.longformer(batch)[real], stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooler", ["cls", "mean"])
def test_batching_and_padding_change_nothing(pooler, tiny_encoder):
    model = build(tiny_encoder, pooler_type=pooler, encode_batch_tokens=40).eval()
    item_seq, lengths = histories()
    one_by_one = [
        model.encode_histories(row[None, : max(int(n), 1)], n[None], model.encode_items())
        for row, n in zip(item_seq, lengths, strict=True)
    ]
    with torch.no_grad():
        together = model.encode_histories(item_seq, lengths, model.encode_items())
    torch.testing.assert_close(together, torch.cat(one_by_one), rtol=1e-4, atol=1e-5)


def test_items_without_text_are_not_known(tiny_encoder):
    model = build(tiny_encoder, texts=[{"title": "pen"}, {"title": ""}, {"title": "cup"}])
    assert model.covered_items().tolist() == [False, True, False, True]


def test_table_is_encoded_once_and_anew_after_a_checkpoint(tiny_encoder, tmp_path):
    model = build(tiny_encoder).train()
    first = model.encode_items().clone()
    assert model.training and not first[0].any() and first[1:].any(dim=1).all()
    with torch.no_grad():
        model.longformer.embeddings.LayerNorm.weight.mul_(2)
    assert torch.equal(model.encode_items(), first)
    save_file(model.longformer.state_dict(), tmp_path / "c.safetensors")
    model.load_checkpoint(tmp_path / "c.safetensors")
    assert not torch.allclose(model.encode_items(), first)


@pytest.fixture
def checkpoint(tiny_encoder):
    """A model, and the state dict of its encoder to be spoilt."""
    model = build(tiny_encoder)
    return model, {name: tensor.clone() for name, tensor in model.longformer.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "longformer.", "_forward_module.model.longformer."])
def test_checkpoint_layouts(prefix, checkpoint, tmp_path):
    model, state = checkpoint
    state["embeddings.position_ids"] = state["embeddings.position_ids"].float()
    state["embeddings.token_type_embeddings.weight"] = torch.full((1, 16), 7.0)
    del state["embeddings.word_embeddings.weight"]  # frozen in DeepSpeed's files
    state = {prefix + name: tensor for name, tensor in state.items()}
    head = prefix.removesuffix("longformer.") + "lm_head.weight"
    torch.save({**state, head: torch.ones(3, 16)}, tmp_path / "c.bin")
    model.load_checkpoint(tmp_path / "c.bin")
    types = model.longformer.embeddings.token_type_embeddings.weight
    assert types.shape == (4, 16) and (types == 7).all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"embeddings.word_embeddings.weight": torch.ones(400, 16)}, ["word_embeddings", "(400, 16)", "(30522, 16)"]),
        ({"encoder.layer.1.output.dense.bias": None}, ["lacks", "layer.1.output.dense.bias", "(16,)"]),
        ({"encoder.layer.2.output.dense.bias": torch.ones(16)}, ["layer.2.output.dense.bias", "(16,)"]),
    ],
)
def test_unfit_checkpoints_are_one_sentence(spoil, words, checkpoint, tmp_path):
    model, state = checkpoint
    state = {name: tensor for name, tensor in {**state, **spoil}.items() if tensor is not None}
    save_file(state, tmp_path / "c.safetensors")
    with pytest.raises(UserError) as raised:
        model.load_checkpoint(tmp_path / "c.safetensors")
    assert all(word in str(raised.value) for word in words) and "\n" not in str(raised.value)


def test_checkpoint_of_another_model(checkpoint, tmp_path):
    save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match="holds no tensor of Recformer"):
        checkpoint[0].load_checkpoint(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MAX_ITEM_LIST_LENGTH": 8}, "max_item_embeddings of at least 9"),
        ({"attention_window": 7}, "attention_window 7"),
        ({"pooler_type": "max"}, "pooler_type 'max'"),
        ({"train_layers": 3}, "train_layers 3 is out of range: the encoder has 2 layers"),
    ],
)
def test_illegal_settings(changes, words, tiny_encoder):
    with pytest.raises(UserError, match=words):
        build(tiny_encoder, **changes)


def test_only_the_top_layer_is_trained(tiny_encoder):
    model = build(tiny_encoder, train_layers=1)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if ".encoder.layer.1." in name}


def test_tokenizer_that_does_not_fit(tiny_encoder, tmp_path):
    config = BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no tokenizer"):
        build(tmp_path)
    for file in tiny_encoder.iterdir():
        if file.name.startswith(("vocab", "tokenizer")):
            shutil.copy(file, tmp_path)
    with pytest.raises(UserError, match="30522 tokens, its encoder 99"):
        build(tmp_path)


def test_other_encoders_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot start from"):
        read_encoder(tmp_path, 8, 64, 8)
    config = DistilBertConfig(dim=8, n_layers=1, n_heads=1, hidden_dim=8, vocab_size=20)
    DistilBertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot start from"):
        read_encoder(tmp_path, 8, 64, 8)


@pytest.fixture
def run(tiny_encoder, tmp_path, monkeypatch):
    """A function: config and loaders of 40 users who walk through the items in order."""
    monkeypatch.chdir(tmp_path)  # RecBole writes its curves there
    monkeypatch.setattr("sys.argv", ["run"])  # RecBole's Config reads the command line
    folder = tmp_path / "walk"
    folder.mkdir()
    lines = ["item_id:token\ttitle:token_seq\tbrand:token_seq"]
    lines += [f"i{i}\t{text['title']}\t{text['brand']}" for i, text in enumerate(TEXTS)]
    (folder / "walk.item").write_text("\n".join(lines) + "\n")
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{u}\ti{(3 * u + t) % len(TEXTS)}\t{t}" for u in range(40) for t in range(8)]
    (folder / "walk.inter").write_text("\n".join(lines) + "\n")

    def make(**changes):
        ours = settings(
            tiny_encoder,
            data_path=str(tmp_path),
            checkpoint_dir=str(tmp_path / "saved"),
            load_col={"inter": ["user_id", "item_id", "timestamp"]},
            eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
            show_progress=False,
            gpu_id="",
            learning_rate=0.003,
            train_batch_size=8,
            max_token_num=24,
            train_word_embeddings=True,
            kd_text_file=str(folder / "walk.item"),
            kd_text_fields=["title", "brand"],
            **changes,
        )
        config = Config(model=Recformer, dataset="walk", config_dict=ours)
        init_seed(config["seed"], config["reproducibility"])
        return config, data_preparation(config, create_dataset(config))

    return make


def test_two_stages(run, monkeypatch):
    config, (train, valid, test) = run(epochs=12, stage_two_epochs=4, stopping_step=2, rows_per_epoch="all")
    model = Recformer(config, train.dataset)
    untrained = RecformerTrainer(config, model).evaluate(test, load_best_model=False)
    tables, refresh = [], model.refresh_items
    seen = []

    def counted():
        refresh()
        tables.append(model.item_embedding.weight.clone())

    monkeypatch.setattr(model, "refresh_items", counted)
    trainer = RecformerTrainer(config, model)
    epoch = trainer._train_epoch

    def watched(*args, **kwargs):
        loss = epoch(*args, **kwargs)
        seen.append((trainer.items_frozen, model.item_embedding.weight.clone()))
        return loss

    monkeypatch.setattr(trainer, "_train_epoch", watched)
    trainer.fit(train, valid)
    first = [table for frozen, table in seen if not frozen]
    second = [table for frozen, table in seen if frozen]
    assert 1 <= len(second) <= 4 and len(tables) == len(first) - 1  # epoch 0 took the table that was there
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(first))
    assert all(torch.equal(table, second[0]) for table in second)
    assert any(torch.equal(table, second[0]) for table in first)
    trained = trainer.evaluate(test, load_best_model=True)
    assert torch.equal(model.item_embedding.weight, second[0])
    assert trained["ndcg@10"] > max(0.3, 1.5 * untrained["ndcg@10"])


def test_one_random_row_of_each_user(run):
    _, (train, _, _) = run()
    users = train._dataset.inter_feat["user_id"]
    some, every = SampledExamples(train, "user_id", True, 0), SampledExamples(train, "user_id", False, 0)
    encoding_jobs = [torch.cat([batch["user_id"] for batch in some]) for _ in range(2)]
    assert all(sorted(p.tolist()) == sorted(set(users.tolist())) for p in encoding_jobs)
    assert not torch.equal(*encoding_jobs)
    assert len(list(some)) == len(some) == -(-len(set(users.tolist())) // 8)
    assert sorted(torch.cat([batch["user_id"] for batch in every]).tolist()) == sorted(users.tolist())
    some.lengths = torch.arange(len(some.users)) % 11
    assert sorted(torch.cat([batch["user_id"] for batch in some]).tolist()) == sorted(torch.unique(some.users).tolist())
    few = [torch.cat([batch["user_id"] for batch in SampledExamples(train, "user_id", True, 9)]) for _ in range(2)]
    assert len(SampledExamples(train, "user_id", True, 9)) == 2
    assert all(len(set(p.tolist())) == 9 for p in few) and set(few[0].tolist()) != set(few[1].tolist())
    lengths = torch.cat([batch["item_length"] for _ in range(5) for batch in some])
    assert len(set(lengths.tolist())) > 1  # not always the same prefix


def test_untrained_model_is_evaluated(run):
    config, (train, valid, test) = run(epochs=0)
    trainer = RecformerTrainer(config, Recformer(config, train.dataset))
    trainer.fit(train, valid)
    assert 0 <= trainer.evaluate(test)["ndcg@10"] <= 1


OFFICIAL = {
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 4098,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}


@pytest.mark.slow
def test_official_size(tiny_encoder, monkeypatch, tmp_path):
    """Names and shapes by the table in the design document; a synthetic official checkpoint loads and scores."""
    config = LongformerConfig(**OFFICIAL, attention_window=[64] * 12)
    torch.manual_seed(4)
    source = RecformerModel(config, 51, window=64)
    state = source.state_dict()
    assert len(state) == 271
    assert sum(p.numel() for p in source.parameters()) == 148_110_336
    block = {
        **{f"attention.self.{kind}{end}": (768, 768) for kind in ("query", "key", "value") for end in ("", "_global")},
        "attention.output.dense": (768, 768),
        "attention.output.LayerNorm": (768,),
        "intermediate.dense": (3072, 768),
        "output.dense": (768, 3072),
        "output.LayerNorm": (768,),
    }
    shapes = {
        "embeddings.position_ids": (1, 4098),
        "embeddings.word_embeddings.weight": (50265, 768),
        "embeddings.position_embeddings.weight": (4098, 768),
        "embeddings.token_type_embeddings.weight": (4, 768),
        "embeddings.item_position_embeddings.weight": (51, 768),
        "embeddings.LayerNorm.weight": (768,),
        "embeddings.LayerNorm.bias": (768,),
    }
    for layer in range(12):
        for name, shape in block.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{name}.bias"] = shape[:1]
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    torch.save({f"longformer.{name}": t for name, t in state.items()}, tmp_path / "recformer_seqrec_ckpt.bin")
    blank = {name: t if name.endswith("_ids") else torch.zeros_like(t) for name, t in state.items()}
    monkeypatch.setattr(recformer, "read_encoder", lambda *_: ("longformer", config, blank))
    model = build(tiny_encoder, attention_window=64, max_item_embeddings=51, max_token_num=1024).eval()
    model.load_checkpoint(tmp_path / "recformer_seqrec_ckpt.bin")
    assert all(torch.equal(model.longformer.state_dict()[name], tensor) for name, tensor in state.items())
    item_seq, lengths = histories(4)
    scores = model.full_sort_predict({"item_id_list": item_seq, "item_length": lengths})
    assert scores.shape == (4, len(TEXTS) + 1) and torch.isfinite(scores).all() and scores[:, 1:].std() > 0
