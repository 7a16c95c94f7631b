"""Fuzzed files, settings, sweeps, comparisons, vectors: each ends well, or in one sentence that leaves nothing behind.

`make test` tries a few fixed inputs; `make test-fuzz` tries PRMKD_EXAMPLES new ones for each test.
`tests/test_stock.py` is the part for `--kd=none`, which is compared with stock RecBole.
"""

from functools import cache
from pathlib import Path
from typing import Any

import fuzz_files as files
import fuzz_inputs as inputs
import numpy as np
import pytest
import ray
import yaml
from fuzz_run import ends, fresh_folder, fuzzed
from hypothesis import given, note
from hypothesis import strategies as st

from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.run_files import no_command_line

SMALL: dict[str, Any] = {
    **{"epochs": 1, "train_batch_size": 64, "eval_batch_size": 512, "MAX_ITEM_LIST_LENGTH": 5, "seed": 1},
    **{"hidden_size": 8, "inner_size": 8, "embedding_size": 8, "n_layers": 1, "n_heads": 1, "mlp_hidden_size": [8]},
    **{"topk": [5], "valid_metric": "NDCG@5", "metrics": ["NDCG"], "show_progress": False, "use_gpu": False},
    **{"data_path": "data", "kd_output_dir": "out", "kd_cache_dir": "cache", "kd_teacher_dir": "teachers"},
    **{"kd_teachers": ["Vectors"], "kd_vectors_items": "items.npz", "kd_vectors_users": "users.npz"},
    "kd_vectors_valid_metric": "NDCG@5",
}
INTER = ["user_id", "item_id", "timestamp"]
FEATURES = {"inter": INTER, "item": ["item_id", "title", "brand", "price"], "user": ["user_id", "age", "tags"]}
GRAPH = {"inter": INTER, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
OF_MODEL: dict[str, dict[str, Any]] = {
    "CFKG": {"load_col": GRAPH},
    "DeepFM": {"load_col": FEATURES, "kd_protocol": "ranking"},
    "SASRecF": {"load_col": FEATURES, "selected_features": ["title", "brand"]},
}
PARTS = {"benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"]}
PARTS |= {"load_col": {"inter": [*INTER, "item_id_list"]}}
OF_DATA: list[dict[str, Any]] = [
    *[{}, {}, {"encoding": "latin-1"}, {"encoding": "utf-16"}, {"field_separator": ","}, {"normalize_all": True}],
    *[{"user_inter_num_interval": "[2,inf)"}, {"val_interval": {"rating": "[2,inf)"}}, {"rm_dup_inter": "first"}],
    *[{"kd_protocol": "ranking"}, {"threshold": {"rating": 3}}, {"load_col": None}],
    *[
        {"eval_args": {"split": {"LS": "test_only"}, "order": "TO"}},
        {"load_col": dict.fromkeys(("inter", "item", "net"), "*")},
    ],
]
USERS, ITEMS = [f"u{u}" for u in range(files.USERS)], [f"i{i}" for i in range(files.ITEMS)]
PAIRS = [(user, ITEMS[(number + step) % len(ITEMS)]) for number, user in enumerate(USERS) for step in range(8)]
SHALLOW = {"result": None}  # the contract of a command that never gets as far as its result


def write(data: files.Files) -> None:
    """The data set's files, and good vectors of its users and items."""
    Path("data/d").mkdir(parents=True)
    for suffix, content in data.items():
        file = Path(f"data/d/d.{suffix}")
        file.mkdir() if content is None else file.write_bytes(content)
    rng = np.random.default_rng(0)
    np.savez("items.npz", item_id=ITEMS, feat=rng.standard_normal((len(ITEMS), 4)))
    np.savez("users.npz", user_id=USERS, feat=rng.standard_normal((len(USERS), 4)))


def write_good() -> None:
    write({suffix: text.encode() for suffix, text in files.small_data().items()})


def run(settings: dict[Any, Any], *options: str, **contract: Any) -> None:
    """A command of these options with these settings in its first config file."""
    Path("c.yaml").write_text(yaml.dump({**SMALL, **settings}))
    named = [] if any(option.startswith("--config_files") for option in options) else ["--config_files=c.yaml"]
    note(ends([*named, *options], **contract) or "ended well")


def student(model: str) -> list[str]:
    return [f"--model={model}", "--dataset=d"]


@cache
def known(model: str) -> dict[str, Any]:
    """The settings of this model with RecBole's defaults."""
    with no_command_line():
        own = load_config(model, "ml-100k").internal_config_dict
    plain = (str, int, float, list, dict, type(None))
    return {key: value for key, value in own.items() if isinstance(value, plain)} | SMALL


@st.composite
def changed(draw: st.DrawFn, *models: str) -> tuple[str, dict[Any, Any]]:
    """A model and a few settings for it."""
    model = draw(st.sampled_from(models))
    return model, draw(inputs.settings_of(known(model)))


@fuzzed(25)
@given(
    files.data_files(),
    st.sampled_from(["SASRec", "BPR", "LightGCN", "Pop", "DeepFM", "SASRecF", "GRU4Rec", "CFKG", "ItemKNN", "DMF"]),
    st.sampled_from(["none", "none", "mean"]),
    st.sampled_from(OF_DATA),
)
def test_data_files(data, model, kd, more):
    with fresh_folder():
        write(data)
        parts = PARTS if "train.inter" in data else {}
        run({"kd": kd, **OF_MODEL.get(model, {}), **parts, **more}, *student(model))


@fuzzed(12)
@given(
    files.data_files(fuzz=["item"], most=1, parts=False),
    st.sampled_from([None, "title", "title,brand", "price", "nobody", "item_id", "[title]", "title,title", "", "5"]),
    st.sampled_from([None, None, None, "data/d/d.item", "nobody.item", "data", "c.yaml", "data/d/d.inter", ""]),
)
def test_item_texts(tiny_encoder, data, fields, file):
    with fresh_folder():
        write(data)
        named = {"kd_text_fields": fields, "kd_text_file": file}
        options = [f"--{key}={value}" for key, value in named.items() if value is not None]
        run({"kd_item_init": "text", "kd_text_encoder": str(tiny_encoder)}, *student("SASRec"), *options)


@fuzzed(35)
@given(
    changed("SASRec", "BPR", "LightGCN", "DeepFM", "GRU4Rec", "CFKG"),
    st.sampled_from(["none", "none", "mean", "prmkd", "prmkd_plus", "rrd"]),
    st.sampled_from(["file", "line", "both"]),
)
def test_settings(made, kd, where):
    model, more = made
    with fresh_folder():
        write_good()
        options = [f"--{key}={value}".replace("\0", "") for key, value in more.items() if where != "file"]
        run({"kd": kd, **OF_MODEL.get(model, {}), **(more if where != "line" else {})}, *student(model), *options)


@fuzzed(25)
@given(inputs.config_files(), st.booleans())
def test_config_files(content, alone):
    with fresh_folder():
        write_good()
        Path("more.yaml").write_bytes(content)
        contract = SHALLOW if alone else {}
        run({}, *student("BPR"), f"--config_files={'' if alone else 'c.yaml '}more.yaml", **contract)


class Started(Exception):
    """Trials, or cells, would start here."""


def started(*_: Any, **__: Any) -> Any:
    raise Started


@pytest.fixture(scope="module")
def nothing_starts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recbole_prmkd.tune.sweep.cluster", started)
        patch.setattr("recbole_prmkd.compare.run.one_at_a_time", started)
        patch.setattr(ray, "init", started)
        yield


@fuzzed(25)
@given(
    inputs.sweep_files(known("SASRec")),
    changed("SASRec", "BPR"),
    st.sampled_from(["prmkd"] * 5 + ["none"]),
    st.sampled_from(
        [[]] * 5 + [["--tune_trials=3"]] * 3 + [["--tune_trials=0"], ["--compare=none,prmkd", "--seeds=1"]]
    ),
    st.sampled_from([True, False, False]),
)
def test_sweeps(nothing_starts, sweep, made, kd, options, odd):
    with fresh_folder():
        write_good()
        Path("sweep.yaml").write_text(yaml.dump(sweep), encoding="utf-8")
        more = {**SMALL, **(made[1] if odd else {}), "kd": kd}
        space = sweep["space"] if isinstance(sweep["space"], dict) else {}
        fixed = {key: value for key, value in more.items() if key not in space and key != "kd_output_dir"}
        Path("c.yaml").write_text(yaml.dump(fixed), encoding="utf-8")
        ends([*student(made[0]), "--config_files=c.yaml", "--tune=sweep.yaml", *options], stop=Started, **SHALLOW)


@fuzzed(20)
@given(st.one_of(inputs.sweep_lines(), inputs.sweep_lines(), inputs.config_files()))
def test_sweep_files(nothing_starts, content):
    with fresh_folder():
        write_good()
        name = "sweep.test" if b":" not in content else "sweep.yaml"
        Path(name).write_bytes(content)
        run({"kd": "mean"}, *student("SASRec"), f"--tune={name}", stop=Started, **SHALLOW)


@fuzzed(20)
@given(inputs.comparisons(), changed("SASRec"), st.sampled_from([True, False, False]))
def test_comparisons(nothing_starts, options, made, odd):
    with fresh_folder():
        write_good()
        run(made[1] if odd else {}, *options, stop=Started, **SHALLOW)


IDS: dict[str, dict[str, list[str]]] = {
    "items": {"item_id": ITEMS},
    "users": {"user_id": USERS},
    "rows": {"user_id": [user for user, _ in PAIRS], "item_id": [item for _, item in PAIRS]},
}


@st.composite
def one_faulty(draw: st.DrawFn) -> dict[str, bytes]:
    """The three files of vectors, at most one of them with faults."""
    faulty = draw(st.sampled_from([None, *IDS]))
    return {
        name: draw(files.vectors(**ids)) if name == faulty else files.good_vectors(**ids) for name, ids in IDS.items()
    }


@fuzzed(30)
@given(
    one_faulty(),
    st.sampled_from(["users", "rows", "rows", "both"]),
    st.sampled_from(["mean", "prmkd", "prmkd_plus", "ensemble", "none"]),
    st.sampled_from(["npz"] * 9 + ["npy", "safetensors", "pth"]),
)
def test_vectors(contents, part, kd, ending):
    with fresh_folder():
        write_good()
        for name, content in contents.items():
            Path(f"{name}.{ending}").write_bytes(content)
        named = {f"kd_vectors_{name}": f"{name}.{ending}" for name in IDS}
        named |= {} if part == "both" else {f"kd_vectors_{'rows' if part == 'users' else 'users'}": None}
        run({**named, "kd": kd, "kd_item_init": "Vectors" if kd in ("none", "mean") else "none"}, *student("SASRec"))


READY = [b"", bytes(448), b"\x00\x00\xc0\x7f" * 112, b"\xff" * 447, b"i1\t0\n", b"0\n", None]


@fuzzed(10)
@given(
    st.sampled_from(["feat1CLS", "text", "item2index", "train.inter", "test.inter"]),
    st.one_of(st.binary(max_size=64), st.sampled_from(READY), st.sampled_from(READY)),
    st.sampled_from(["mean", "none"]),
)
def test_ready_vectors(damaged, content, kd):
    with fresh_folder():
        write({**files.processed_data(), damaged: content})
        sizes = {
            "kd_unisrec_epochs": 1,
            "kd_unisrec_hidden_size": 8,
            "kd_unisrec_inner_size": 8,
            "kd_unisrec_n_exps": 2,
        }
        more = {"kd_teachers": ["UniSRec"], "kd_item_init": "text", "kd_unisrec_valid_metric": "NDCG@5"}
        run({**sizes, **more, "kd": kd}, *student("SASRec"))


@fuzzed(10)
@given(
    st.one_of(
        st.binary(max_size=40), st.sampled_from([b"", b"{}", b"[]", b"null", b"[" * 3000, b'{"a": NaN}', inputs.PICKLE])
    ),
    st.sampled_from(["sweep.json", "comparison.json", "result.json", "unfinished/progress.json"]),
)
def test_files_of_earlier_runs(nothing_starts, content, name):
    """What lies in an output folder already may be anything."""
    with fresh_folder():
        write_good()
        Path("out/unfinished").mkdir(parents=True)
        Path("out", name).write_bytes(content)
        if name == "sweep.json":
            ends(["--tune_resume=out"], stop=Started, **SHALLOW)
        elif name == "comparison.json":
            run({}, "--compare=none", "--models=SASRec", "--datasets=d", stop=Started, **SHALLOW)
        else:
            run({}, *student("SASRec"))
