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
    weights = {k: v for k, v in parity.weights.items() if stage == "transductive" or k != "item_embedding.weight"}
    table = parity.inputs["plm_table"]
    monkeypatch.setattr(unisrec, "item_text_vectors", lambda config, dataset: table)
    config = {
        **parity.settings,
        "train_stage": stage,
        "adaptor_dropout_prob": 0.2,
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": weights["position_embedding.weight"].shape[0],
        "device": "cpu",
    }
    model = UniSRec(config, SimpleNamespace(num=lambda field: len(table)))
    model.load_state_dict(weights)  # names and shapes equal the official ones, or this raises
    return model.eval()


def close(ours, official):
    np.testing.assert_allclose(ours.detach().numpy(), official, rtol=1e-5, atol=1e-5)


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
    close(model.cosine(histories, items) / model.temperature, parity.outputs[f"{stage}.train_logits"])
    close(model.full_sort_predict(batch), parity.outputs[f"{stage}.scores"])
    own = parity.outputs[f"{stage}.scores"][np.arange(len(batch["item_id"])), batch["item_id"]]
    close(model.predict(batch), own)
    loss = model.calculate_loss(batch)
    close(loss, parity.outputs[f"{stage}.ce_loss"])
    loss.backward()
    official = {k.split("|")[1]: v for k, v in parity.gradients.items() if k.startswith(f"{stage}.ce_loss|")}
    assert official
    for name, gradient in official.items():
        close(model.get_parameter(name).grad, gradient)
