"""Going on from yesterday's student against a new start: epochs until today's student is as good as yesterday's.

python benchmarks/go_on.py --dataset=amazon18-scientific --data_path=...

Yesterday's data set lacks the last events of each user (--later of them); users and items without another event are
unknown to it. Today's student starts from yesterday's (kd_student_checkpoint) or anew, with all else equal. Both are
compared at yesterday's best validation score; the first entry of `valid` is after one epoch. `ratio`: epochs of going
on over those of a new start, wanted at most a third. Every other --key=value is a setting of all three runs.
"""

import json
import tempfile
from pathlib import Path

import pandas as pd
from measure import options

from recbole_prmkd import run_recbole_prmkd


def main() -> None:
    arguments = options(__doc__, model="SASRec", dataset="ml-100k", data_path="dataset", later=2)
    source = Path(arguments.data_path) / arguments.dataset / f"{arguments.dataset}.inter"
    with tempfile.TemporaryDirectory() as folder:
        cut(source, Path(folder), arguments.later)
        runs = {name: {"data_path": folder, "kd_output_dir": f"{folder}/{name}"} for name in ("yesterday", "new", "on")}
        runs["on"]["kd_student_checkpoint"] = f"{folder}/yesterday"
        scores = {}
        for name, own in runs.items():
            settings = {"kd": "none", "kd_protocol": "ranking", "eval_step": 1, "show_progress": False, **own}
            data = "yesterday" if name == "yesterday" else "today"
            found = run_recbole_prmkd(arguments.model, data, config_dict=settings)["result"]["student"]
            scores[name] = found["valid_scores"]
            carried = found["carried_over"]
    goal = max(scores["yesterday"])
    epochs = {name: next((n for n, score in enumerate(scores[name], 1) if score >= goal), None) for name in scores}
    ratio = round(epochs["on"] / epochs["new"], 3) if epochs["on"] and epochs["new"] else None
    best = {name: max(each) for name, each in scores.items()}
    print(json.dumps({"ratio": ratio, "epochs": epochs, "best": best, "carried_over": carried, "valid": scores}))


def cut(source: Path, folder: Path, later: int) -> None:
    """Write both data sets as atomic files of their interactions alone."""
    events = pd.read_csv(source, sep="\t", dtype=str)
    user, time = (next(name for name in events if name.startswith(start)) for start in ("user_id", "timestamp"))
    events = events.assign(order=pd.to_numeric(events[time])).sort_values([user, "order"], kind="stable")
    from_end = events.groupby(user).cumcount(ascending=False)
    for name, part in (("today", events), ("yesterday", events[from_end >= later])):
        (folder / name).mkdir()
        part.drop(columns="order").to_csv(folder / name / f"{name}.inter", sep="\t", index=False)


if __name__ == "__main__":
    main()
