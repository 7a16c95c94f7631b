"""`--kd=none` is stock RecBole: generated data sets and settings go through both.

Where RecBole's own `run_recbole` ends well, ours ends well with the same metrics; where it does not, ours ends with one
sentence or well. `PRMKD_EXAMPLES` sets how many are tried (`make test-fuzz`: many).
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_run import fuzzed
from hypothesis import event, given
from recbole.quick_start import run_recbole
from stock_inputs import SMALL, data_and_settings, write_data

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.recbole_host.run_files import no_command_line


def outcome(run, model, given):
    """What a run returns, or the exception that ends it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), no_command_line():
        try:
            return run(model, "made", config_dict=given)
        except Exception as error:  # RecBole raises what it likes
            return error


def both(model, write, more, folder):
    """What stock RecBole makes of it, and what ours does."""
    write_data(folder / "data", **write)
    given = {**SMALL, **more, "data_path": str(folder / "data"), "checkpoint_dir": str(folder / "stock")}
    here = os.getcwd()
    os.chdir(folder)
    try:
        stock_given = {key: value for key, value in given.items() if not key.startswith("kd_")}
        stock = outcome(run_recbole, model, stock_given)
        ours = outcome(run_recbole_prmkd, model, {**given, "kd": "none", "kd_output_dir": str(folder / "out")})
    finally:
        os.chdir(here)
    return stock, ours


def plain(metrics):
    return None if metrics is None else {key: float(value) for key, value in metrics.items()}


def check(model, write, more):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stock, ours = both(model, write, more, folder)
        if isinstance(stock, Exception):
            assert not isinstance(ours, Exception) or isinstance(ours, UserError), f"a traceback: {ours!r}"
            return "refused by RecBole"
        if isinstance(ours, Exception):
            raise AssertionError(f"RecBole trains, ours ends with {ours!r}") from ours
        for part in ("best_valid_result", "test_result"):
            np.testing.assert_equal(plain(ours[part]), plain(stock[part]), part)
        assert ours["best_valid_score"] == stock["best_valid_score"]
        checkpoint = next((folder / "stock").glob(f"{model}-*.pth"), None)
        if checkpoint is None:  # neither validated nor tested
            return "equal, nothing saved"
        theirs = torch.load(checkpoint, weights_only=False, map_location="cpu")["state_dict"]
        mine = torch.load(folder / "out" / f"{model}.pth", weights_only=False, map_location="cpu")["state_dict"]
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
        return "equal"


WRITTEN = {"users": 8, "items": 20, "lengths": (4, 12), "seed": 1, "files": None, "empty": "", "histories": True}
WRITTEN |= {"time": True}
TIMED = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "metrics": ["NDCG"], "valid_metric": "NDCG@5"}
TIMED |= {"topk": [5], "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}
PRE_SPLIT = {
    "benchmark_filename": ["train", "valid", "test"],
    "load_col": {"inter": ["user_id", "item_id", "item_id_list"]},
    "alias_of_item_id": ["item_id_list"],
}

PLAIN_FILES = {"benchmark_filename": ["train", "valid", "test"], "load_col": {"inter": ["user_id", "item_id"]}}


def by(split, mode="full"):
    return {"eval_args": {"split": split, "order": "TO", "group_by": "user", "mode": mode}}


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares two runs on a CPU")
@pytest.mark.parametrize(
    ("model", "write", "more"),
    [
        ("BPR", {}, by({"LS": "test_only"})),
        ("BPR", {}, by({"LS": "valid_only"}, "uni5")),
        ("BPR", {}, by({"RS": [1.0, 0.0, 0.0]})),
        ("GRU4Rec", {}, by({"LS": "test_only"}) | {"loss_type": "BPR"}),
        ("BPR", {"lengths": (1, 3)}, by({"LS": "valid_and_test"})),
        ("BPR", {"files": ["train", "valid", "test"]}, PRE_SPLIT),  # histories, which it does not read
        ("BPR", {"files": ["train", "valid", "test"], "empty": "valid"}, PLAIN_FILES),
        ("GRU4Rec", {"files": ["train", "valid", "test"]}, PRE_SPLIT | {"MAX_ITEM_LIST_LENGTH": 4, "loss_type": "BPR"}),
        ("GRU4Rec", {"files": ["train", "valid", "test"]}, PRE_SPLIT | {"alias_of_item_id": None, "loss_type": "BPR"}),
        ("Pop", {}, by({"LS": "valid_only"}) | {"eval_step": 3}),  # neither validated nor tested
        ("Pop", {}, by({"LS": "valid_only"}, "labeled") | {"eval_step": 2, "metrics": ["AUC"], "valid_metric": "AUC"}),
        ("Pop", {}, by({"LS": "valid_only"}) | {"eval_step": 2, "topk": [99], "valid_metric": "NDCG@99"}),
        ("BPR", {}, by({"LS": "valid_only"}) | {"eval_step": 0, "topk": [99], "valid_metric": "nothing"}),
        ("BPR", {}, {"load_col": {"inter": "*"}}),
        ("BPR", {}, {"load_col": {"inter": ["user_id", "item_id", "timestamp", "nobody"]}}),
    ],
)
def test_none_trains_on_what_stock_recbole_trains_on(model, write, more):
    assert check(model, WRITTEN | write, TIMED | more).startswith("equal")


def test_a_model_of_one_epoch_is_validated_or_says_so(settings, tmp_path):
    given = settings(kd="none", eval_step=5)
    with pytest.raises(UserError, match="no weights would be saved"):
        run_recbole_prmkd("Pop", "tiny", config_dict=given)
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="compares two runs on a CPU")
@fuzzed(40)
@given(data_and_settings())
def test_none_accepts_and_gives_what_stock_recbole_does(made):
    event(check(*made))
