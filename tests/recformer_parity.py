"""Numbers of the official Recformer code (folder in the environment variable PRMKD_PARITY), our model beside them."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LongformerConfig, LongformerModel

from recbole_prmkd.recbole_host.keys import pretraining_properties
from recbole_prmkd.teachers import recformer
from recbole_prmkd.teachers.recformer import Recformer
from recbole_prmkd.teachers.recformer_text import TokenBatch

PARITY = Path(os.environ.get("PRMKD_PARITY", Path(__file__).parents[2] / "shared" / "parity"))
FOLDER, CHECKPOINTS = PARITY / "recformer", PARITY / "checkpoints"
needs_parity = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no parity data in {FOLDER}")


def read_parity():
    """Settings, items, sequences, inputs, outputs and gradients of the official run."""
    read = lambda name: dict(np.load(FOLDER / name))  # noqa: E731
    sequences = json.loads((FOLDER / "sequences.json").read_text())
    return SimpleNamespace(
        settings=json.loads((FOLDER / "config.json").read_text()),
        texts=[item["attributes"] for item in json.loads((FOLDER / "items.json").read_text())],
        histories=[s["history"] for s in sequences["sequences"]],
        pairs=[(pair["history"], pair["target"]) for pair in sequences["pretrain_pairs"]],
        inputs={key: torch.from_numpy(value) for key, value in read("inputs.npz").items()},
        outputs=read("outputs.npz"),
        gradients=read("gradients.npz"),
    )


def write_encoder(parity, folder):
    """An untrained Longformer of the official run's size, with its tokenizer."""
    for file in (FOLDER / "tokenizer").iterdir():
        shutil.copy(file, folder)
    names = LongformerConfig().to_dict().keys() & parity.settings.keys() - {"model_type", "transformers_version"}
    config = LongformerConfig(**{name: parity.settings[name] for name in names})
    torch.manual_seed(1)
    LongformerModel(config, add_pooling_layer=False).save_pretrained(folder)


def official_settings(parity):
    """The official run's settings under our keys."""
    return {
        "max_attr_num": parity.settings["max_attr_num"],
        "max_attr_length": parity.settings["max_attr_length"],
        "max_token_num": parity.settings["max_token_num"],
        "max_item_embeddings": parity.settings["max_item_embeddings"],
        "MAX_ITEM_LIST_LENGTH": parity.settings["max_item_embeddings"] - 1,
        "attention_window": parity.settings["attention_window"][0],
        "temperature": parity.settings["temp"],
        "pooler_type": parity.settings["pooler_type"],
        "mlm_weight": parity.settings["mlm_weight"],
        "train_word_embeddings": True,
        "train_layers": 0,
        "encode_batch_tokens": 100,  # several batches
    }


def build_model(texts, encoder, checkpoint=None, **changes):
    """Recformer without RecBole's Config and data set, in evaluation mode, by default for fine-tuning."""
    config = {
        **pretraining_properties("Recformer"),
        "train_stage": None,
        "kd_text_encoder": str(encoder),
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "device": "cpu",
        **changes,
    }
    tokens = np.array(["[PAD]", *map(str, range(len(texts)))])
    dataset = SimpleNamespace(num=lambda field: len(tokens), iid_field="item_id", field2id_token={"item_id": tokens})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recformer, "item_texts", lambda config, tokens: texts)
        model = Recformer(config, dataset)
    if checkpoint is not None:
        model.load_checkpoint(checkpoint)
    return model.eval()


def interaction(histories, targets):
    """Histories as RecBole gives them: oldest first, right-padded, item ids from 1."""
    lengths = torch.tensor([len(history) for history in histories])
    item_seq = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.int64)
    for row, history in enumerate(histories):
        item_seq[row, : len(history)] = torch.tensor(history, dtype=torch.int64) + 1
    return {"item_id_list": item_seq, "item_length": lengths, "item_id": torch.as_tensor(targets) + 1}


def close(ours, official):
    np.testing.assert_allclose(ours.detach().numpy(), official, rtol=1e-5, atol=1e-5)


def official_batch(parity, name, end=""):
    return TokenBatch(*(parity.inputs[f"{name}.{field}{end}"] for field in TokenBatch._fields))


def equal(ours, official):
    for field, mine, theirs in zip(TokenBatch._fields, ours, official, strict=True):
        assert torch.equal(mine, theirs), field


def check_gradients(model, parity, loss):
    """Those of a loss that was run backward, against the official ones of that name."""
    official = {k.removeprefix(f"{loss}|"): v for k, v in parity.gradients.items() if k.startswith(f"{loss}|")}
    assert official
    for name, gradient in official.items():
        close(model.get_parameter(name).grad, gradient)
