"""UniSRec against numbers of the official code (folder in the environment variable PRMKD_PARITY)."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recbole_prmkd.teachers import unisrec
from recbole_prmkd.teachers.augment import drop_items
from recbole_prmkd.teachers.causal import FirstView
from recbole_prmkd.teachers.contrastive import in_batch_scores, info_nce
from recbole_prmkd.teachers.unisrec import UniSRec

FOLDER = Path(os.environ.get("PRMKD_PARITY", Path(__file__).parents[2] / "shared" / "parity")) / "unisrec"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no parity data in {FOLDER}")


@pytest.fixture(scope="module")
def parity():
    """Settings, weights, inputs, outputs and gradients of the official run."""
    read = lambda name: dict(np.load(FOLDER / name))  # noqa: E731
    return SimpleNamespace(
        settings=json.loads((FOLDER / "settings.json").read_text()),
        weights=load_file(FOLDER / "weights.safetensors"),
        inputs={key: torch.from_numpy(value) for key, value in read("inputs.npz").items()},
        outputs=read("outputs.npz"),
        gradients=read("gradients.npz"),
    )


def build(parity, stage, monkeypatch):
    """Our model of this stage, with the official weights."""
    absent = {"pretrain": ["plm", "item"], "inductive": ["item"], "transductive": []}[stage]
    weights = {k: v for k, v in parity.weights.items() if k.split("_embedding")[0] not in absent}
    table = parity.inputs["plm_table"]
    texts = {0.0: table, 0.15: parity.inputs["plm_table_aug"]}
    monkeypatch.setattr(unisrec, "item_text_vectors", lambda config, dataset, word_drop=0.0: texts[word_drop])
    config = {
        **parity.settings,
        "train_stage": stage,
        "adaptor_dropout_prob": 0.2,
        "freeze_pretrained": True,
        "softmax": "full",
        "same_target": "zero",
        "seq_seq_weight": parity.settings["lambda"],
        "item_drop_share": 0.5,
        "item_drop_ratio": 0.3,
        "noise_ratio": 0.3,
        "word_drop_ratio": 0.15,
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": weights["position_embedding.weight"].shape[0],
        "device": "cpu",
    }
    model = UniSRec(config, SimpleNamespace(num=lambda field: len(table)))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    # Names equal the official ones, which in pre-training hold no text vectors.
    assert set(missing) <= ({f"{table}.weight" for table in model.side_information} if stage == "pretrain" else set())
    return model.eval()


def close(ours, official):
    np.testing.assert_allclose(ours.detach().numpy(), official, rtol=1e-5, atol=1e-5)


def gradients(model, loss, parity, name):
    """The loss's gradients equal the official ones of that name."""
    model.zero_grad()
    loss.backward(retain_graph=True)
    official = {k.split("|")[1]: v for k, v in parity.gradients.items() if k.startswith(f"{name}|")}
    assert official
    for parameter, gradient in official.items():
        close(model.get_parameter(parameter).grad, gradient)


def test_adaptor_and_gates(parity, monkeypatch):
    adaptor = build(parity, "inductive", monkeypatch).moe_adaptor
    table = parity.inputs["plm_table"]
    close(adaptor(table), parity.outputs["adaptor_all_items"])
    close(adaptor.gates(table), parity.outputs["gates_all_items"])
    close(adaptor.gates(table, parity.inputs["gate_noise"]), parity.outputs["gates_noisy_all_items"])


@pytest.mark.parametrize("stage", ["inductive", "transductive"])
def test_fine_tuning_stage(parity, stage, monkeypatch):
    model = build(parity, stage, monkeypatch)
    batch = {key: parity.inputs[key] for key in ("item_id_list", "item_length", "item_id")}
    items = model.encode_items()
    histories = model.encode_histories(batch["item_id_list"], batch["item_length"], items)
    close(histories, parity.outputs[f"{stage}.seq_output"])
    close(model.scores(histories, items) / model.temperature, parity.outputs[f"{stage}.train_logits"])
    close(model.full_sort_predict(batch), parity.outputs[f"{stage}.scores"])
    own = parity.outputs[f"{stage}.scores"][np.arange(len(batch["item_id"])), batch["item_id"]]
    close(model.predict(batch), own)
    loss = model.calculate_loss(batch)
    close(loss, parity.outputs[f"{stage}.ce_loss"])
    gradients(model, loss, parity, f"{stage}.ce_loss")


@pytest.mark.parametrize("view", ["item_drop", "word_drop"])
def test_pretraining_stage(parity, view, monkeypatch):
    model = build(parity, "pretrain", monkeypatch)
    batch = {key: parity.inputs[key] for key in ("item_id_list", "item_length", "item_id")}
    marks, name = parity.inputs[f"{view}.keep_mask"].bool(), f"pretrain_{view}"
    first = FirstView(model, batch)
    close(first.histories, parity.outputs[f"{name}.seq_output"])
    second = model.without_items(first, marks) if view == "item_drop" else model.with_noise(first, ~marks)
    close(second, parity.outputs[f"{name}.seq_output_aug"])

    def contrast(keys):
        return info_nce(in_batch_scores(first.histories, keys, model.temperature), batch["item_id"], model.same_target)

    seq_item, seq_seq = contrast(first.items[first.targets]), contrast(second)
    close(seq_item, parity.outputs[f"{name}.seq_item_loss"])
    close(seq_seq, parity.outputs[f"{name}.seq_seq_loss"])
    gradients(model, seq_seq, parity, f"{name}.seq_seq_loss")

    # The same through the loss that RecBole's trainer calls, with the marks in place of its random numbers.
    model.item_drop_share = float(view == "item_drop")
    monkeypatch.setattr(torch, "rand", lambda *size, **_: marks.float() if size[0] else torch.tensor(0.5))
    if view == "word_drop":
        model.noise_ratio = 0.5
    loss = model.calculate_loss(batch)
    close(loss, parity.outputs[f"{name}.total_loss"])
    gradients(model, loss, parity, f"{name}.total_loss")


def test_dropped_items_are_the_official_ones(parity):
    inputs = parity.inputs
    dropped = drop_items(inputs["item_id_list"], inputs["item_length"], inputs["item_drop.keep_mask"].bool())
    assert torch.equal(dropped.item_seq, inputs["item_drop.item_id_list_aug"])
    assert torch.equal(dropped.length, inputs["item_drop.item_length_aug"])
