"""How much of an oracle's knowledge reaches a student at each period of the KD loss (`kd_every`).

    python docs/experiments/kd_every.py FOLDER        # writes FOLDER/kd_every.csv

2,000 users walk along a circle of 400 items, and the teacher has the vector of each user's next item. An epoch has 63
batches of 128. Each period k is run with two factors on the KD loss: k, as the package has it, and sqrt(k), by a lower
`kd_weight`. All students are trained for the same number of epochs, and the best of them by validation is tested.

The rows `ml-100k` of `kd_every.csv` come from runs of

    run_recbole_prmkd --model=BPR --dataset=ml-100k --kd=prmkd --kd_curriculum=none --kd_protocol=ranking --kd_every=16
        --seed=2020 --kd_teacher_seed=1 --kd_unisrec_hidden_size=64 --kd_unisrec_epochs=5 --valid_metric=NDCG@10
        --learning_rate=0.005 --epochs=40 --stopping_step=3

with 15 epochs for LightGCN; 10 epochs and a learning rate of 0.002 for DeepFM; `kd_weight` 5 x factor / k. The teacher
of .105 has 25 epochs and `--kd_unisrec_train_stage=transductive`, its students `--stopping_step=5`.
"""

import csv
import sys
from pathlib import Path

import numpy as np

from recbole_prmkd import run_recbole_prmkd

USERS, LENGTH, ITEMS = 2000, 6, 400
STUDENTS = {"BPR": 12, "LightGCN": 6, "DeepFM": 6}  # epochs
SETTINGS = {
    "kd_protocol": "ranking",
    "learning_rate": 0.005,
    "train_batch_size": 128,
    "stopping_step": 100,
    "metrics": ["NDCG", "Recall"],
    "valid_metric": "NDCG@10",
    "show_progress": False,
    "use_gpu": False,
}


def write_ring(folder: Path) -> dict[str, str]:
    """Atomic file and the oracle's vectors; gives the keys of the teacher."""
    first = np.random.default_rng(0).integers(ITEMS, size=USERS)
    lines = [f"u{user}\ti{(start + k) % ITEMS}\t{k}" for user, start in enumerate(first) for k in range(LENGTH)]
    (folder / "ring").mkdir(parents=True, exist_ok=True)
    (folder / "ring" / "ring.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines))
    angle = 2 * np.pi * np.arange(ITEMS)[:, None] / ITEMS * 2.0 ** np.arange(7)
    vectors = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)  # [ITEMS, 14]
    np.savez(folder / "items.npz", item_id=np.array([f"i{item}" for item in range(ITEMS)]), feat=vectors)
    following = vectors[(first + LENGTH - 1) % ITEMS]
    np.savez(folder / "users.npz", user_id=np.array([f"u{user}" for user in range(USERS)]), feat=following)
    return {"kd_vectors_items": str(folder / "items.npz"), "kd_vectors_users": str(folder / "users.npz")}


def main(folder: Path) -> None:
    teacher = {"kd": "mean", "kd_teachers": ["Vectors"], **write_ring(folder)}
    files = {f"kd_{part}_dir": str(folder / part) for part in ("output", "cache", "teacher")}
    rows = []
    for model, epochs in STUDENTS.items():
        for seed in (2020, 2021):
            for every, factor in ((0, 0), (1, 1), (4, 4), (4, 2), (16, 16), (16, 4)):
                given = {**SETTINGS, **files, "data_path": str(folder), "epochs": epochs, "seed": seed}
                if every:
                    given |= teacher | {"kd_every": every, "kd_weight": 5 * factor / every}
                student = run_recbole_prmkd(model, "ring", config_dict=given)["result"]["student"]
                scores = [student[part]["ndcg@10"] for part in ("valid_unseen", "test_unseen")]
                rows.append(["ring", model, "auto", every, factor, seed, *scores, student["epochs"]])
    with (folder / "kd_every.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    main(root)
