"""A teacher that knows the next item raises students of every family; the same one over shuffled items does not."""

import numpy as np
import pytest

from recbole_prmkd import run_recbole_prmkd

USERS, LENGTH, ITEMS = 40, 5, 60
# model: family of its scores, least gain of NDCG@10. The teacher of models without order knows each user's next item;
# that of sequential models knows the target of each training example, by a rule that goes on.
STUDENTS = {
    "SASRec": ("factorised", 0.02),
    "CORE": ("loss", 0.05),
    "BERT4Rec": ("full", 0.02),
    "DeepFM": ("pairs", 0.3),
    "LightGCN": ("factorised", 0.3),
    "MultiVAE": ("factorised", 0.3),
}
IN_ORDER = ("SASRec", "CORE", "BERT4Rec")
OWN = {"BERT4Rec": {"train_batch_size": 128, "mask_ratio": 0.5, "epochs": 60}}  # a batch without a mask has a NaN loss
SETTINGS = {
    "kd_protocol": "ranking",
    "epochs": 25,
    "train_batch_size": 16,
    "learning_rate": 0.01,
    "embedding_size": 16,
    "stopping_step": 100,
    "metrics": ["NDCG", "Recall"],
    "valid_metric": "NDCG@10",
}
# The whole catalogue as candidates, in every batch.
DISTILLED = {
    "kd": "mean",
    "kd_weight": 30.0,
    "kd_teachers": ["Vectors"],
    "kd_candidates": "teacher_top",
    "kd_top_items": ITEMS,
    "kd_max_candidates": None,
    "kd_pair_candidates": ITEMS,
    "kd_max_rows": None,
    "kd_every": 1,
    "kd_false_negative_mask": False,
}


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """Few short histories along a circle of items, and the files of an oracle on that circle."""
    folder = tmp_path_factory.mktemp("sparse")
    first = np.random.default_rng(0).integers(ITEMS, size=USERS)
    lines = [f"u{u}\ti{(start + k) % ITEMS}\t{k}" for u, start in enumerate(first) for k in range(LENGTH)]
    (folder / "ring").mkdir()
    (folder / "ring" / "ring.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines))
    angle = 2 * np.pi * np.arange(ITEMS)[:, None] / ITEMS * np.arange(1, 9)  # [ITEMS, 8]
    vectors = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    users, items = (np.array([f"{kind}{n}" for n in range(count)]) for kind, count in (("u", USERS), ("i", ITEMS)))
    np.savez(folder / "items.npz", item_id=items, feat=vectors)
    np.savez(folder / "users.npz", user_id=users, feat=vectors[(first + LENGTH - 1) % ITEMS])
    every = {"user_id": users.repeat(ITEMS), "item_id": np.tile(items, USERS), "feat": np.tile(vectors, (USERS, 1))}
    np.savez(folder / "rows.npz", **every)
    return folder


@pytest.mark.parametrize("model", STUDENTS)
def test_an_oracle_raises_the_student_and_a_shuffled_one_does_not(model, sparse, settings, tmp_path):
    family, gain = STUDENTS[model]
    kind = "rows" if model in IN_ORDER else "users"
    files = {"kd_vectors_items": str(sparse / "items.npz"), f"kd_vectors_{kind}": str(sparse / f"{kind}.npz")}

    def ndcg(**keys):
        given = settings(
            data_path=str(sparse), kd_output_dir=str(tmp_path / "run"), **{**SETTINGS, **OWN.get(model, {})}, **keys
        )
        student = run_recbole_prmkd(model, "ring", config_dict=given)["result"]["student"]
        assert "kd" not in keys or student["kd"]["family"] == family
        return student["test_unseen"]["ndcg@10"]

    alone = ndcg()
    taught, shuffled = (ndcg(kd_shuffled_teachers=wrong, **DISTILLED, **files) for wrong in (False, True))
    assert taught > alone + gain and shuffled < alone, (alone, taught, shuffled)
