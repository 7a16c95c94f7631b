"""Whether two versions of the code give the same students: hashes of the weights after two epochs on ml-100k.

python benchmarks/same_numbers.py OUT.json [MODELS] [KDS]

Run it in both checkouts (one thread each) and compare the two files. Three teachers of one epoch, histories of 20.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch

from recbole_prmkd import run_recbole_prmkd

MODELS = "SASRec,GRU4Rec,LightGCN,DeepFM,MultiVAE,BERT4Rec"
KDS = "none,mean,prmkd,prmkd_plus"
SMALL = {"epochs": 1, "hidden_size": 32, "inner_size": 32, "train_stage": "transductive", "max_item_list_length": 20}
TEACHERS = {
    "UniSRec": SMALL,
    "UniSRec_text": SMALL | {"train_stage": "inductive"},
    "UniSRec_b": SMALL | {"max_item_list_length": 10},
}


def main() -> None:
    """Write a line for each model and KD method that the file has not yet."""
    out, models, kds = (*sys.argv[1:], *(MODELS, KDS)[len(sys.argv) - 2 :])
    sys.argv = sys.argv[:1]  # RecBole reads the rest as settings
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    file = Path(out)
    found = json.loads(file.read_text()) if file.exists() else {}
    teachers = {f"kd_{name}_{key}".lower(): value for name, own in TEACHERS.items() for key, value in own.items()}
    made = file.resolve().parent
    for model in models.split(","):
        for kd in kds.split(","):
            if f"{model}/{kd}" in found:
                continue
            settings = {"kd": kd, "kd_protocol": "ranking", "epochs": 2, "MAX_ITEM_LIST_LENGTH": 20, **teachers}
            settings |= {"kd_teachers": list(TEACHERS), "kd_output_dir": str(made / "out" / f"{model}-{kd}")}
            settings |= {"kd_cache_dir": str(made / "cache"), "kd_teacher_dir": str(made / "teachers")}
            run = run_recbole_prmkd(model, "ml-100k", config_dict={**settings, "show_progress": False})
            checkpoint = torch.load(Path(run["output_dir"]) / f"{model}.pth", weights_only=False)
            found[f"{model}/{kd}"] = weights_hash(checkpoint["state_dict"])
            file.write_text(json.dumps(found, indent=1))


def weights_hash(state: dict[str, torch.Tensor]) -> str:
    """sha256 of all weights, by name."""
    sha = hashlib.sha256()
    for name, value in sorted(state.items()):
        sha.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()


if __name__ == "__main__":
    main()
