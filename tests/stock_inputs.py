"""Data sets and settings that stock RecBole mostly trains on, for `tests/test_stock.py`."""

import numpy as np
from hypothesis import strategies as st

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
WITH_FEATURES = ["SASRecF", "GRU4RecF", "FDSA"]  # sequential, and they read columns of the items
CONTEXT = ["DeepFM", "FM", "LR", "WideDeep", "DCN"]
KNOWLEDGE = ["CFKG", "CKE", "KGCN", "KTUP"]
GENERAL = ["BPR", "LightGCN", "NGCF", "NeuMF", "DMF", "Pop", "ItemKNN", "EASE", "MultiDAE", "RecVAE"]
MODELS = [*GENERAL, *KNOWLEDGE, *CONTEXT, *SEQUENTIAL, *WITH_FEATURES]
SPLITS = [
    {"LS": "valid_and_test"},
    {"LS": "valid_only"},
    {"LS": "test_only"},
    {"RS": [0.8, 0.1, 0.1]},
    {"RS": [1.0, 0.0, 0.0]},
    {"RS": [0.9, 0.0, 0.1]},
    {"RS": [0.9, 0.1, 0.0]},
    {"RS": [3, 1, 1]},
    {"RS": [0.5, 0.25, 0.25]},
    {"RS": [0.2, 0.4, 0.4]},
]
# What takes interactions out, or changes columns.
FILTERS = [
    {},
    {},
    {"user_inter_num_interval": "[3,inf)"},
    {"item_inter_num_interval": "[2,inf)"},
    {"user_inter_num_interval": "[2,6];[8,inf)", "item_inter_num_interval": "(1,inf)"},
    {"rm_dup_inter": "first"},
    {"rm_dup_inter": "last"},
    {"filter_inter_by_user_or_item": False, "user_inter_num_interval": "[3,inf)"},
    {"val_interval": {"timestamp": "[100,inf)"}},
]
# What changes training and evaluation.
TRAINING = [
    {},
    {},
    {"learner": "sgd"},
    {"learner": "sparse_adam"},
    {"clip_grad_norm": {"max_norm": 0.1}},
    {"weight_decay": 0.1},
    {"shuffle": False},
    {"stopping_step": 0},
    {"stopping_step": 1, "epochs": 4},
    {"epochs": 0},
    {"epochs": 1, "eval_step": 2},
    {"eval_step": 0, "valid_metric": "MRR@3"},
    {"eval_step": 0, "valid_metric": "nothing"},
    {"valid_metric": "ndcg@5", "topk": 5, "metrics": "NDCG"},
    {"topk": (5, 1), "valid_metric": "NDCG@5"},
    {"metric_decimal_place": 2, "loss_decimal_place": 1},
    {"valid_metric_bigger": False},
    {"enable_amp": True},
    {"train_neg_sample_args": {"distribution": "popularity", "sample_num": 2, "alpha": 0.5}},
    {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "dynamic": True, "candidate_num": 3}},
    {"train_batch_size": 1000, "eval_batch_size": 1},
    {"train_batch_size": 7},
    {"learning_rate": 0},
    {"save_dataset": True},
    {"benchmark_filename": None, "additional_feat_suffix": []},
    {"my_own": 3},
    {"gpu_id": ""},
    {"state": "WARNING"},
]
COLUMNS = [{}, {}, {"unused_col": {"inter": ["timestamp"]}}, {"load_col": {"inter": "*"}}, {"load_col": None}]
COLUMNS += [{"load_col": {"inter": ["user_id", "item_id", "timestamp", "nobody"]}}, {"unload_col": {"item": ["title"]}}]
SIDE = {"user": ["user_id", "age", "tags"], "item": ["item_id", "price", "brand", "title"]}
GRAPH = {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
OF_FEATURES = [
    {},
    {"normalize_all": True},
    {"normalize_field": ["price"]},
    {"seq_len": {"title": 1}},
    {"LABEL_FIELD": "liked"},
]
OF_FEATURES += [{"numerical_features": ["price"]}, {"discretization": {"price": {"method": "ED", "bucket": 3}}}]


def of_model(draw, model, order):
    """Settings that the kind of model needs or allows."""
    more = {}
    if model in [*SEQUENTIAL, *WITH_FEATURES]:
        more["load_col"] = {"inter": ["user_id", "item_id", "timestamp"]}
        if model in WITH_FEATURES:
            more["load_col"]["item"] = SIDE["item"]
            more |= {"selected_features": draw(st.sampled_from([["title"], ["brand", "title"], ["brand"]]))}
        more |= draw(st.sampled_from([{"train_neg_sample_args": None}, {"loss_type": "BPR"}]))
    elif model in ("MultiDAE", "RecVAE"):
        more["train_neg_sample_args"] = None
    elif model in KNOWLEDGE:
        more |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"], **GRAPH}, "kg_embedding_size": 8}
        more |= {"kg_reverse_r": draw(st.booleans()), "reg_weights": [1e-2, 1e-2]}
    elif model in CONTEXT:
        more |= {"load_col": {"inter": ["user_id", "item_id", "rating"]}, "threshold": {"rating": 4}}
        if draw(st.booleans()):
            more["load_col"] |= SIDE
            more |= draw(st.sampled_from(OF_FEATURES))
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
    if model not in [*SEQUENTIAL, *WITH_FEATURES] and draw(st.booleans()):
        more["repeatable"] = draw(st.booleans())
    modes = ["full"] * 4 + ["uni5", "uni5", "pop3", "pop3", {"valid": "uni5", "test": "full"}, "labeled"]
    mode = draw(st.sampled_from([*modes, "labeled"] if model in CONTEXT else modes))  # labels come from ratings
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
    more |= draw(st.sampled_from(FILTERS))
    more |= of_model(draw, model, more["eval_args"]["order"])
    more |= draw(st.sampled_from(TRAINING))
    more |= draw(st.sampled_from(COLUMNS))
    if "val_interval" in more and "timestamp" not in ((more.get("load_col") or {}).get("inter") or []):
        del more["val_interval"]
    files = draw(st.sampled_from([None, None, ["train", "valid", "test"]]))
    write = {
        "users": draw(st.integers(3, 15)),
        "items": draw(st.integers(12, 30)),
        "lengths": draw(st.sampled_from([(1, 9), (3, 8), (5, 12)])),
        "seed": draw(st.integers(0, 999)),
        "files": files,
        "empty": draw(st.sampled_from(["", "", "valid", "test"])),
        "histories": model in [*SEQUENTIAL, *WITH_FEATURES] or draw(st.booleans()),
        "time": draw(st.booleans()) or files is None,
    }
    if files:
        more["benchmark_filename"] = files
        columns = ["user_id", "item_id", *(["rating"] if model in CONTEXT else [])]
        columns += ["timestamp"] if write["time"] else []
        columns += ["item_id_list"] if write["histories"] and model not in CONTEXT else []
        more["load_col"] = {**(more.get("load_col") or {}), "inter": columns}
        if not write["time"]:
            more.pop("val_interval", None)
        more["alias_of_item_id"] = ["item_id_list"] if "item_id_list" in columns and draw(st.integers(0, 3)) else None
    return model, write, more


def write_side(data, users, items, rng):
    """Columns of users and items, and a graph in which one item has no entity."""
    lines = [f"u{user}\t{18 + user}\tt{user % 3} t{user % 2}" for user in range(users)]
    (data / "made.user").write_text("\n".join(["user_id:token\tage:float\ttags:token_seq", *lines]) + "\n")
    words = ["red", "old", "tall", "flat"]
    lines = [f"i{item}\t{item % 7}.5\tb{item % 3}\t{words[item % 4]} thing" for item in range(items)]
    header = "item_id:token\tprice:float\tbrand:token\ttitle:token_seq"
    (data / "made.item").write_text("\n".join([header, *lines]) + "\n")
    lines = [f"e{rng.integers(items)}\tr{rng.integers(3)}\te{rng.integers(items)}" for _ in range(3 * items)]
    (data / "made.kg").write_text("\n".join(["head_id:token\trelation_id:token\ttail_id:token", *lines]) + "\n")
    lines = [f"i{item}\te{item}" for item in range(1, items)]
    (data / "made.link").write_text("\n".join(["item_id:token\tentity_id:token", *lines]) + "\n")


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
    write_side(data, users, items, np.random.default_rng(seed))
    if files:
        header += ["item_id_list:token_seq"] if histories else []
        for name in files:
            lines = ["\t".join([*row, *([history] if histories else [])]) for row, history in rows[name] if history]
            (data / f"made.{name}.inter").write_text("\n".join(["\t".join(header), *lines]) + "\n")
    else:
        lines = ["\t".join(row) for part in rows.values() for row, _ in part]
        (data / "made.inter").write_text("\n".join(["\t".join(header), *lines]) + "\n")
