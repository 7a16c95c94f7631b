"""Training without a validation or test part, and from pre-split files of two parts."""

import numpy as np
import pytest
import torch
from conftest import write_tiny

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.tune import run_sweep


def by(split):
    return {"eval_args": {"split": split, "order": "TO", "group_by": "user", "mode": "full"}}


@pytest.mark.parametrize("split", [{"LS": "test_only"}, {"LS": "valid_only"}, {"RS": [1.0, 0.0, 0.0]}])
@pytest.mark.parametrize("model", ["SASRec", "LightGCN"])
def test_a_part_may_be_empty(model, split, settings, tmp_path):
    run = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="prmkd", **by(split)))["result"]
    counts, student, teacher = run["dataset"], run["student"], run["teachers"]["UniSRec"]
    for part in ("valid", "test"):
        empty = counts[f"{part}_rows"] == 0
        assert empty == (f"{part}_only" not in split.get("LS", ""))
        assert all((measured[part] == {}) == empty for measured in (student, teacher))
        assert all((measured[f"{part}_unseen"] == {}) == empty for measured in (student, teacher))
    assert student["epochs"] == 2 and (tmp_path / "out" / student["checkpoint"]).is_file()
    assert 0 < teacher["holdout"] < 1 and run["distillation"][-1]["kd_loss"] > 0


def test_without_validation_the_last_epoch_counts(settings):
    """Early stopping has nothing to stop on, and the teachers are those of any other epochs."""
    given = settings(kd="mean", epochs=3, stopping_step=0, **by({"LS": "test_only"}))
    run = run_recbole_prmkd("BPR", "tiny", config_dict=given)
    assert run["result"]["student"]["epochs"] == 3 and run["best_valid_result"] is None
    assert run["result"]["student"]["valid_scores"] == []


def test_the_ensemble_needs_no_validation(settings):
    run = run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="ensemble", **by({"LS": "test_only"})))
    assert run["test_result"]["ndcg@10"] > 0 and run["best_valid_score"] == -np.inf


@pytest.mark.parametrize("histories", [True, False])
@pytest.mark.parametrize("second", ["test", "valid"])
def test_two_pre_split_files(second, histories, settings, tmp_path):
    """The second file is the test or the validation, by its name; histories serve students of every kind."""
    data = write_tiny(tmp_path / "data") / "tiny"
    lines = [line.split("\t") for line in (data / "tiny.inter").read_text().splitlines()[1:]]
    sequences = {}
    for user, item, _, time in lines:
        sequences.setdefault(user, []).append((item, time))
    header = "user_id:token\titem_id:token\ttimestamp:float" + ("\titem_id_list:token_seq" if histories else "")
    files = {"train": [header], second: [header]}
    for user, events in sequences.items():
        for step, (item, time) in enumerate(events[1:], 1):
            history = [" ".join(name for name, _ in events[:step])] if histories else []
            files["train" if step < len(events) - 1 else second].append("\t".join([user, item, time, *history]))
    (data / "tiny.inter").unlink()
    for name, rows in files.items():
        (data / f"tiny.{name}.inter").write_text("\n".join(rows) + "\n")
    more = {"benchmark_filename": ["train", second], "data_path": str(tmp_path / "data")}
    columns = ["user_id", "item_id", "timestamp", *(["item_id_list"] if histories else [])]
    more |= {"load_col": {"inter": columns}, "alias_of_item_id": ["item_id_list"] if histories else None}
    for model in ("SASRec", "BPR") if histories else ("BPR",):
        run = run_recbole_prmkd(model, "tiny", config_dict=settings(kd="mean", **more))["result"]
        other = {"test": "valid", "valid": "test"}[second]
        assert run["student"][other] == {} and run["student"][second]["ndcg@10"] > 0
        assert run["teachers"]["UniSRec"]["unknown_rows"] == (0 if histories else len(sequences))


@pytest.mark.slow  # Ray
def test_a_sweep_needs_a_validation(settings, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text("space: {learning_rate: {choice: [0.001, 0.01]}}\ntrials: 1\n")
    with pytest.raises(UserError, match="validation part is empty"):
        run_sweep(
            "BPR",
            "tiny",
            config_dict=settings(kd="none", kd_protocol="ranking", **by({"LS": "test_only"})),
            sweep_file=str(space),
        )


@pytest.mark.parametrize(("model", "kd"), [("BPR", "none"), ("SASRec", "none"), ("LightGCN", "prmkd")])
def test_saving_the_loaders_changes_nothing(model, kd, settings, tmp_path, monkeypatch):
    """Nor does reading them back, as RecBole does in the next run with that folder."""
    monkeypatch.chdir(tmp_path)
    weights = []
    for number, more in enumerate([{}, {"save_dataloaders": True}, {}]):
        folder = tmp_path / str(number)
        given = settings(kd=kd, kd_protocol="ranking", epochs=3, kd_output_dir=str(folder), **more)
        run_recbole_prmkd(model, "tiny", config_dict=given)
        weights.append(torch.load(folder / f"{model}.pth", weights_only=False)["state_dict"])
        assert len(list(tmp_path.glob("saved/*dataloader.pth"))) == (number > 0)
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())
