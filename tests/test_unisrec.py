"""UniSRec at its official size: names, shapes and parameters, and a synthetic released file that it loads."""

import sys
import types
from types import SimpleNamespace

import pytest
import torch

from recbole_prmkd.recbole_host.keys import properties_dir, read_yaml
from recbole_prmkd.teachers import unisrec
from recbole_prmkd.teachers.unisrec import UniSRec

TEXT, WIDTH, INNER, LONGEST, EXPERTS, ITEMS = 768, 300, 256, 50, 8, 11
PARAMETERS = 2_910_344  # of the pre-training stage


def official_shapes():
    """Name -> shape of the released pre-training state dict, from the paper's settings."""
    shapes = {"position_embedding.weight": (LONGEST, WIDTH), "LayerNorm.weight": (WIDTH,), "LayerNorm.bias": (WIDTH,)}
    for layer in range(2):
        attention = f"trm_encoder.layer.{layer}.multi_head_attention"
        feed = f"trm_encoder.layer.{layer}.feed_forward"
        for part in ("query", "key", "value", "dense"):
            shapes |= {f"{attention}.{part}.weight": (WIDTH, WIDTH), f"{attention}.{part}.bias": (WIDTH,)}
        for norm in (attention, feed):
            shapes |= {f"{norm}.LayerNorm.weight": (WIDTH,), f"{norm}.LayerNorm.bias": (WIDTH,)}
        shapes |= {f"{feed}.dense_1.weight": (INNER, WIDTH), f"{feed}.dense_1.bias": (INNER,)}
        shapes |= {f"{feed}.dense_2.weight": (WIDTH, INNER), f"{feed}.dense_2.bias": (WIDTH,)}
    shapes |= {"moe_adaptor.w_gate": (TEXT, EXPERTS), "moe_adaptor.w_noise": (TEXT, EXPERTS)}
    for expert in range(EXPERTS):
        name = f"moe_adaptor.experts.{expert}"
        shapes |= {f"{name}.bias": (TEXT,), f"{name}.lin.weight": (WIDTH, TEXT)}
    return shapes


@pytest.fixture
def build(monkeypatch):
    """A function: the model of this stage, with the settings of `properties/`."""

    def make(stage):
        text = torch.cat([torch.zeros(1, TEXT), torch.randn(ITEMS - 1, TEXT)])
        monkeypatch.setattr(unisrec, "item_text_vectors", lambda config, dataset, word_drop=0.0: text)
        config = {
            **read_yaml(properties_dir() / "model" / "UniSRec.yaml"),
            **(read_yaml(properties_dir() / "pretrain" / "UniSRec.yaml") if stage == "pretrain" else {}),
            "train_stage": stage,
            **{"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_"},
            **{"ITEM_LIST_LENGTH_FIELD": "item_length", "device": "cpu"},
        }
        return UniSRec(config, SimpleNamespace(num=lambda field: ITEMS)).eval()

    return make


@pytest.mark.parametrize(
    ("stage", "tensors", "tables"),
    [
        ("pretrain", 53, {}),
        ("inductive", 54, {"plm_embedding.weight": (ITEMS, TEXT)}),
        ("transductive", 55, {"plm_embedding.weight": (ITEMS, TEXT), "item_embedding.weight": (ITEMS, WIDTH)}),
    ],
)
def test_names_and_shapes(stage, tensors, tables, build):
    shapes = {name: tuple(tensor.shape) for name, tensor in build(stage).state_dict().items()}
    if stage == "pretrain":  # the text vectors of the data sets at hand are no part of the released file
        shapes = {name: shape for name, shape in shapes.items() if "plm_embedding" not in name}
        assert sum(torch.Size(shape).numel() for shape in shapes.values()) == PARAMETERS
    assert shapes == {**official_shapes(), **tables}
    assert len(shapes) == tensors


def test_synthetic_released_file(build, tmp_path, monkeypatch):
    """A pickle with a configuration object of a class that is not here, as the authors' trainer writes it."""
    module = types.ModuleType("config")

    class Config:
        def __init__(self):
            self.final_config_dict = {"dataset": "FHCKM"}

    Config.__module__, Config.__qualname__ = "config", "Config"
    module.Config = Config
    weights = {name: torch.randn(shape) / 20 for name, shape in official_shapes().items()}
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "config", module)
        content = {"config": Config(), "epoch": 299, "state_dict": weights, "optimizer": {}}
        torch.save(content, tmp_path / "UniSRec-FHCKM-300.pth")
    model = build("transductive")
    model.load_checkpoint(tmp_path / "UniSRec-FHCKM-300.pth")
    for name, tensor in weights.items():
        assert torch.equal(model.state_dict()[name], tensor)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"plm_embedding.weight"} | {
        name for name in weights if name.startswith(("trm_encoder", "position_embedding"))
    }
    batch = {"item_id_list": torch.tensor([[3, 4] + [0] * 48]), "item_length": torch.tensor([2])}
    scores = model.full_sort_predict(batch)
    assert scores.shape == (1, ITEMS) and torch.isfinite(scores).all() and scores.abs().max() <= 1 + 1e-5
