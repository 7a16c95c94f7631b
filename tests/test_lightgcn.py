"""PyGLightGCN is RecBole's LightGCN: the same parameters, numbers and checkpoints."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from recbole.config import Config
from recbole.quick_start import run_recbole
from recbole.utils import get_model

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students import STUDENTS

STOCK_AND_OURS = ["LightGCN", "PyGLightGCN"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def pair(cpu_settings):
    """RecBole's model and ours with the same weights, and the training split that both read."""

    def make(**more):
        config = load_config("PyGLightGCN", "tiny", config_dict=cpu_settings(kd="none", **more))
        split = load_split(config)
        stock, ours = (get_model(name)(config, split.train_data._dataset) for name in ("LightGCN", "PyGLightGCN"))
        for parameter in stock.parameters():
            torch.nn.init.normal_(parameter)
        ours.load_state_dict(stock.state_dict())
        return stock, ours, split

    return make


def test_recbole_finds_model_and_properties(tiny_path):
    assert get_model("PyGLightGCN") is STUDENTS["PyGLightGCN"]
    config, stock = (Config(name, "tiny", config_dict={"data_path": str(tiny_path)}) for name in STOCK_AND_OURS[::-1])
    for key in ("embedding_size", "n_layers", "reg_weight", "MODEL_TYPE", "eval_args", "valid_metric"):
        assert config[key] == stock[key]
    assert config["require_pow"] is False


def test_the_package_starts_without_torch_geometric():
    script = "import sys, recbole_prmkd; sys.exit('torch_geometric' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


@pytest.mark.parametrize("require_pow", [True, False])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_loss_and_gradients_equal_recboles(n_layers, require_pow, pair):
    stock, ours, split = pair(n_layers=n_layers, require_pow=require_pow, reg_weight=0.1)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (stock, ours)]
    assert shapes[0] == shapes[1] and list(shapes[1]) == ["user_embedding.weight", "item_embedding.weight"]
    for left, right in zip(stock.forward(), ours.forward(), strict=True):
        torch.testing.assert_close(right, left, **CLOSE)
    batch = next(iter(split.train_data))
    losses = [model.calculate_loss(batch) for model in (stock, ours)]
    torch.testing.assert_close(losses[1], losses[0], **CLOSE)
    for loss in losses:
        loss.backward()
    for left, right in zip(stock.parameters(), ours.parameters(), strict=True):
        assert bool((left.grad != 0).any())
        torch.testing.assert_close(right.grad, left.grad, **CLOSE)


def test_scores_equal_recboles_and_are_kept_until_the_next_step(pair):
    stock, ours, split = pair()
    batch = next(iter(split.train_data))
    for name in ("predict", "full_sort_predict"):
        left, right = (getattr(model, name)(batch) for model in (stock, ours))
        assert left.shape == right.shape
        torch.testing.assert_close(right, left, **CLOSE)
    assert ours.other_parameter().keys() == stock.other_parameter().keys()
    assert ours.restore_user_e.shape == stock.restore_user_e.shape
    assert ours.restore_item_e.shape == stock.restore_item_e.shape
    ours.calculate_loss(batch)
    assert ours.restore_user_e is None and ours.restore_item_e is None


def test_adjacency_equals_recboles_with_interactions_that_repeat(pair):
    _, _, split = pair()
    data = split.train_data._dataset
    data.inter_feat = data.inter_feat[torch.cat([torch.arange(len(data.inter_feat)), torch.tensor([0, 0, 3])])]
    config = data.config
    stock, ours = (get_model(name)(config, data) for name in ("LightGCN", "PyGLightGCN"))
    torch.testing.assert_close(ours.graph.adjacency().to_dense(), stock.norm_adj_matrix.to_dense())
    assert torch.equal(ours.graph.adjacency().to_dense(), ours.graph.adjacency().to_dense().T)


def test_mixed_precision_and_copies(pair):
    _, ours, split = pair()
    batch = next(iter(split.train_data))
    loss = ours.calculate_loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = copy.deepcopy(ours).calculate_loss(batch)
    mixed.backward()
    torch.testing.assert_close(mixed.float(), loss, rtol=1e-2, atol=1e-2)


def test_stock_run_equals_recboles_and_its_checkpoint_loads_there(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain = {key: value for key, value in settings(require_pow=True).items() if not key.startswith("kd_")}
    stock, ours = (run_recbole(name, "tiny", config_dict=plain | {"checkpoint_dir": name}) for name in STOCK_AND_OURS)
    assert ours["test_result"] == pytest.approx(stock["test_result"], abs=1e-3)
    (theirs,), (mine,) = (
        [torch.load(file, weights_only=False) for file in Path(name).glob("*.pth")] for name in STOCK_AND_OURS
    )
    for name, value in theirs["state_dict"].items():
        torch.testing.assert_close(mine["state_dict"][name], value, **CLOSE)
    assert mine["other_parameter"].keys() == theirs["other_parameter"].keys()


@pytest.mark.parametrize("kd", ["none", "prmkd"])
def test_a_run_leaves_a_checkpoint_for_recboles_lightgcn(kd, settings, tmp_path):
    run = run_recbole_prmkd("PyGLightGCN", "tiny", config_dict=settings(kd=kd, epochs=1))
    assert len(run["result"]["distillation"]) == (kd == "prmkd")
    assert kd == "none" or run["result"]["distillation"][0]["kd_loss"] > 0
    saved = torch.load(tmp_path / "out" / "PyGLightGCN.pth", weights_only=False)
    split = load_split(load_config("LightGCN", "tiny", config_dict=settings(kd=kd)))
    stock = get_model("LightGCN")(split.dataset.config, split.train_data._dataset)
    stock.load_state_dict(saved["state_dict"])
    stock.load_other_parameter(saved["other_parameter"])


def test_distillation_equals_that_of_recboles_lightgcn(settings, tmp_path):
    stock, ours = (
        run_recbole_prmkd(
            name, "tiny", config_dict=settings(kd="prmkd", require_pow=True, kd_output_dir=str(tmp_path / name))
        )["result"]
        for name in STOCK_AND_OURS
    )
    assert ours["student"]["train_losses"] == pytest.approx(stock["student"]["train_losses"], rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_adjacency_is_on_the_gpu_with_the_model(pair):
    stock, ours, split = pair(use_gpu=True)
    stock, ours = stock.cuda(), ours.cuda()
    assert ours.graph.adjacency().is_cuda
    batch = next(iter(split.train_data)).to("cuda")
    left, right = stock.calculate_loss(batch), ours.calculate_loss(batch)
    torch.testing.assert_close(right, left, **CLOSE)
    right.backward()
    left.backward()
    torch.testing.assert_close(ours.item_embedding.weight.grad, stock.item_embedding.weight.grad, **CLOSE)
