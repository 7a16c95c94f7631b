"""Trained students of each family on a small data set with features and a knowledge graph, for the tests of serving."""

import numpy as np

from recbole_prmkd import run_recbole_prmkd

USERS, ITEMS = 24, 20
SMALL = {
    "kd": "none",
    "kd_protocol": "ranking",
    "epochs": 1,
    "train_batch_size": 256,
    "eval_batch_size": 1024,
    "MAX_ITEM_LIST_LENGTH": 6,
    "hidden_size": 8,
    "inner_size": 8,
    "embedding_size": 8,
    "mlp_hidden_size": [8],
    "show_progress": False,
    "state": "ERROR",
    "use_gpu": False,
    "topk": [5],
    "metrics": ["NDCG", "ItemCoverage", "AveragePopularity"],
    "valid_metric": "NDCG@5",
}
_EVENTS = ["user_id", "item_id", "timestamp"]
# One of each family, and how it is set.
FAMILIES: dict[str, dict] = {
    "SASRec": {"train_neg_sample_args": None},
    "BPR": {},
    "LightGCN": {},
    "DeepFM": {"load_col": {"inter": _EVENTS, "user": ["user_id", "age"]}},
    "CKE": {
        "load_col": {
            "inter": _EVENTS,
            "kg": ["head_id", "relation_id", "tail_id"],
            "link": ["item_id", "entity_id"],
        },
        "metrics": ["NDCG"],  # RecBole's metrics of coverage and popularity fail on its knowledge loaders
    },
    "MultiVAE": {},
}


def write_data(folder, users=range(USERS), items=range(ITEMS), events=9):
    """Atomic files with user features and a knowledge graph; each user's last event is a test target."""
    rng = np.random.default_rng(0)
    data = folder / "shop"
    data.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    items = list(items)
    for user in users:
        chosen = rng.permutation(len(items))[:events]
        lines += [f"u{user}\ti{items[place]}\t{1_600_000_000 + 10 * step}" for step, place in enumerate(chosen)]
    (data / "shop.inter").write_text("\n".join(lines) + "\n")
    ages = "".join(f"u{user}\t{20 + user % 5}\n" for user in users)
    (data / "shop.user").write_text("user_id:token\tage:token\n" + ages)
    triples = "".join(f"m{item}\tr{item % 2}\tm{(item + 3) % ITEMS}\n" for item in range(ITEMS))
    (data / "shop.kg").write_text("head_id:token\trelation_id:token\ttail_id:token\n" + triples)
    links = "".join(f"i{item}\tm{item}\n" for item in range(ITEMS))
    (data / "shop.link").write_text("item_id:token\tentity_id:token\n" + links)
    return folder


def trained(model, data, output, **more):
    """The folder of a run of this student."""
    settings = {**SMALL, **FAMILIES.get(model, {}), "data_path": str(data), "kd_output_dir": str(output), **more}
    run_recbole_prmkd(model, "shop", config_dict=settings)
    return output
