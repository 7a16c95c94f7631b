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
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from recbole.quick_start import run_recbole

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.recbole_host.run_files import no_command_line

EXAMPLES = int(os.environ.get("PRMKD_EXAMPLES", "25"))
SMALL = {
    "epochs": 2,
    "train_batch_size": 64,
    "eval_batch_size": 512,
    "hidden_size": 8,
    "inner_size": 8,
    "embedding_size": 8,
    "n_layers": 1,
    "n_heads": 1,
    "mlp_hidden_size": [8],
    "show_progress": False,
    "state": "ERROR",
}
SEQUENTIAL = ["SASRec", "GRU4Rec", "STAMP", "Caser"]
MODELS = ["BPR", "LightGCN", "Pop", "ItemKNN", "EASE", "MultiDAE", "RecVAE", "DeepFM", *SEQUENTIAL]
SPLITS = [
    {"LS": "valid_and_test"},
    {"LS": "valid_only"},
    {"LS": "test_only"},
    {"RS": [0.8, 0.1, 0.1]},
    {"RS": [1.0, 0.0, 0.0]},
    {"RS": [0.9, 0.0, 0.1]},
    {"RS": [0.9, 0.1, 0.0]},
    {"RS": [3, 1, 1]},
]


def of_model(draw, model, order):
    """Settings that the kind of model needs or allows."""
    more = {}
    if model in SEQUENTIAL:
        more["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
        more |= draw(st.sampled_from([{"train_neg_sample_args": None}, {"loss_type": "BPR"}]))
    elif model in ("MultiDAE", "RecVAE"):
        more["train_neg_sample_args"] = None
    elif model == "DeepFM":
        more |= {"load_col": {"inter": ["user_id", "item_id", "rating"]}, "threshold": {"rating": 4}}
        if order == "TO":
            more["load_col"]["inter"].append("timestamp")
        if draw(st.booleans()):
            more |= {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}, "threshold": None}
    if "load_col" not in more and (order == "TO" or draw(st.booleans())):
        more["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
    return more


@st.composite
def data_and_settings(draw):
    """A model, what is written to its data set's files, and settings."""
    model = draw(st.sampled_from(MODELS))
    more = {
        "seed": draw(st.integers(0, 2**16)),
        "eval_step": draw(st.sampled_from([1, 1, 2, 0])),
        "topk": draw(st.sampled_from([[10], [1, 5]])),
        "MAX_ITEM_LIST_LENGTH": draw(st.sampled_from([4, 20])),
        "kd_save_ranks": draw(st.booleans()),
    }
    if model not in SEQUENTIAL and draw(st.booleans()):
        more["repeatable"] = draw(st.booleans())
    mode = draw(st.sampled_from(["full", "full", "uni5", "pop3", {"valid": "uni5", "test": "full"}, "labeled"]))
    more["eval_args"] = {
        "split": draw(st.sampled_from(SPLITS)),
        "order": draw(st.sampled_from(["TO", "TO", "RO"])),
        "group_by": draw(st.sampled_from(["user", None])),
        "mode": mode,
    }
    if mode == "labeled":
        more |= {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC"}
    else:
        metrics = ["NDCG", "Recall", *draw(st.sampled_from([[], ["MRR", "GAUC"], ["ItemCoverage"]]))]
        more |= {"metrics": metrics, "valid_metric": f"NDCG@{more['topk'][0]}"}
    if draw(st.booleans()):
        more["user_inter_num_interval"] = "[3,inf)"
    more |= of_model(draw, model, more["eval_args"]["order"])
    files = draw(st.sampled_from([None, None, ["train", "valid", "test"]]))
    write = {
        "users": draw(st.integers(3, 15)),
        "items": draw(st.integers(12, 30)),
        "lengths": draw(st.sampled_from([(1, 9), (3, 8), (5, 12)])),
        "seed": draw(st.integers(0, 999)),
        "files": files,
        "empty": draw(st.sampled_from(["", "", "valid", "test"])),
        "histories": model in SEQUENTIAL or draw(st.booleans()),
        "time": draw(st.booleans()) or files is None,
    }
    if files:
        more["benchmark_filename"] = files
        columns = ["user_id", "item_id", *(["rating"] if model == "DeepFM" else [])]
        columns += ["timestamp"] if write["time"] else []
        columns += ["item_id_list"] if write["histories"] and model != "DeepFM" else []
        more["load_col"] = {"inter": columns}
        more["alias_of_item_id"] = ["item_id_list"] if "item_id_list" in columns and draw(st.integers(0, 3)) else None
    return model, write, more


def write_data(folder, users, items, lengths, seed, files, empty, histories, time):
    """Atomic files of random sequences; with `files` they are pre-split, each row with its history."""
    rng, rows = np.random.default_rng(seed), {"train": [], "valid": [], "test": []}
    for user in range(users):
        sequence = [f"i{item}" for item in rng.permutation(items)[: rng.integers(*lengths)]]
        for step, item in enumerate(sequence):
            part = {1: "test", 2: "valid"}.get(len(sequence) - step, "train")
            row = [f"u{user}", item, str(1 + (step + user) % 5)] + ([str(100 * step)] if time else [])
            if not files or part != empty:
                rows[part].append((row, " ".join(sequence[:step])))
    header = ["user_id:token", "item_id:token", "rating:float"] + (["timestamp:float"] if time else [])
    data = folder / "made"
    data.mkdir(parents=True)
    if files:
        header += ["item_id_list:token_seq"] if histories else []
        for name in files:
            lines = ["\t".join([*row, *([history] if histories else [])]) for row, history in rows[name] if history]
            (data / f"made.{name}.inter").write_text("\n".join(["\t".join(header), *lines]) + "\n")
    else:
        lines = ["\t".join(row) for part in rows.values() for row, _ in part]
        (data / "made.inter").write_text("\n".join(["\t".join(header), *lines]) + "\n")


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
            return "refused by RecBole"
        if isinstance(ours, Exception):
            raise AssertionError(f"RecBole trains, ours ends with {ours!r}") from ours
        for part in ("best_valid_result", "test_result"):
            np.testing.assert_equal(plain(ours[part]), plain(stock[part]), part)
        assert ours["best_valid_score"] == stock["best_valid_score"]
        checkpoint = next((folder / "stock").glob("*.pth"), None)
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
@hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="PRMKD_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@given(data_and_settings())
def test_none_accepts_and_gives_what_stock_recbole_does(made):
    check(*made)
