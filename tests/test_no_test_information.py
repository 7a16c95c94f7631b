"""No test information in any choice: only the final evaluation reads test examples, other ones change nothing."""

import pandas as pd
import pytest
import torch
from conftest import write_tiny

from recbole_prmkd import preparation, quick_start, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.tune import run_sweep

# Everything that chooses: when teachers and student stop, confidence by validation, difficulty and popularity, the
# warm start, what the teachers rank first.
CHOICES = {
    "none": {"kd_protocol": "ranking", "kd_item_init": "UniSRec"},
    "prmkd": {"kd_confidence": "validation", "kd_item_init": "UniSRec", "kd_pacing_length": 2},
    "prmkd_plus": {"kd_candidates": "both_top"},
    "rrd": {},
    "mean": {"kd_confidence": "gate", "kd_fusion": "product", "kd_candidates": "teacher_top"},
    "diverse": {"kd_confidence": "calibrated"},
}
STOPPING = {"epochs": 4, "stopping_step": 1, "kd_unisrec_epochs": 3}


def guarded(split, allowed):
    """The split, whose test loader and test data set fail when an example is read before `allowed` says so."""

    def refuse(name):
        def read(self, *arguments):
            assert allowed, f"test examples were read by {name} before the final evaluation"
            return getattr(super(type(self), self), name)(*arguments)

        return read

    loader = split.test_data
    for thing, names in ((loader, ["__iter__", "collate_fn"]), (loader._dataset, ["__getitem__"])):
        kind = type(thing)
        thing.__class__ = type(kind.__name__, (kind,), {name: refuse(name) for name in names})
    return split


@pytest.fixture
def watched(monkeypatch):
    """Whether the final evaluation may begin, from the end of the student's training on; and the test batches read."""
    allowed, train = [], quick_start.train
    monkeypatch.setattr(preparation, "load_split", lambda *given: guarded(load_split(*given), allowed))

    def trained(*arguments, **named):
        assert not allowed
        result = train(*arguments, **named)
        allowed.append("the final evaluation")
        return result

    monkeypatch.setattr(quick_start, "train", trained)
    return allowed


@pytest.mark.parametrize("kd", sorted(CHOICES))
@pytest.mark.parametrize("model", ["SASRec", "LightGCN"])
def test_only_the_final_evaluation_reads_test_examples(model, kd, watched, settings):
    run = run_recbole_prmkd(model, "tiny", config_dict=settings(kd=kd, **CHOICES[kd]))
    assert watched and run["test_result"]["recall@10"] >= 0


@pytest.mark.parametrize("model", ["SASRec", "LightGCN"])
def test_the_guard_sees_a_reader(model, settings):
    split = guarded(load_split(load_config(model, "tiny", config_dict=settings(kd="prmkd"))), [])
    with pytest.raises(AssertionError, match="test examples were read by __iter__"):
        next(iter(split.test_data))
    with pytest.raises(AssertionError, match="test examples were read by __getitem__"):
        split.test_data._dataset[torch.tensor([0])]


@pytest.fixture(scope="module")
def two_data_sets(tmp_path_factory):
    """The small data set twice, with other test items for half of the users.

    All items stand before those users in the file, so that RecBole numbers them alike: its numbers, not what is learnt,
    are what would differ otherwise.
    """
    folders = [write_tiny(tmp_path_factory.mktemp(name)) for name in ("as_is", "other")]
    file = folders[1] / "tiny" / "tiny.inter"
    lines = [line.split("\t") for line in file.read_text().splitlines()]
    last = {line[0]: number for number, line in enumerate(lines)}
    half = [number for user, number in last.items() if user[1:].isdigit() and int(user[1:]) >= 20]
    earlier = {line[1] for line in lines[1 : half[0]]}
    assert len(half) == 20 and {lines[number][1] for number in half} <= earlier
    for number in half:
        lines[number][1] = f"i{(int(lines[number][1][1:]) + 11) % 30}"
        assert lines[number][1] in earlier
    file.write_text("\n".join("\t".join(line) for line in lines) + "\n")
    return folders


@pytest.mark.parametrize(("model", "kd"), [*(("SASRec", kd) for kd in sorted(CHOICES)), ("LightGCN", "prmkd")])
def test_other_test_items_change_no_bit_of_what_is_learnt(model, kd, two_data_sets, settings, tmp_path):
    made, tested = [], []
    for number, folder in enumerate(two_data_sets):
        out = tmp_path / str(number)
        files = {f"kd_{part}_dir": str(out / part) for part in ("cache", "teacher", "output")}
        given = settings(kd=kd, data_path=str(folder), **CHOICES[kd], **STOPPING, **files)
        run = run_recbole_prmkd(model, "tiny", config_dict=given)
        stored = {
            str(file.relative_to(out)): file.read_bytes()
            for part in ("cache", "teacher")
            for file in sorted((out / part).rglob("*"))
            if file.suffix in {".npy", ".safetensors"}
        }
        weights = torch.load(out / "output" / f"{model}.pth", weights_only=False)["state_dict"]
        student = run["result"]["student"]
        numbers = [student[key] for key in ("valid", "valid_unseen", "epochs", "train_losses")]
        holdouts = [teacher["holdout"] for teacher in run["result"]["teachers"].values()]
        made.append((stored, weights, numbers, holdouts, run["result"]["distillation"]))
        tested.append(student["test"])
    (files, weights, *rest), (other_files, other_weights, *other_rest) = made
    assert files == other_files and any(name.endswith("weights.safetensors") for name in files)
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert rest == other_rest
    assert tested[0] != tested[1]  # so other examples were ranked at the end


@pytest.mark.slow
def test_other_test_items_change_no_trial_and_no_winner_of_a_sweep(two_data_sets, settings, tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("{space: {kd_weight: {loguniform: [0.5, 20]}, kd_curriculum: {choice: [none, easy]}}, trials: 3}")
    found = []
    for number, folder in enumerate(two_data_sets):
        files = {f"kd_{part}_dir": str(tmp_path / str(number) / part) for part in ("cache", "teacher", "output")}
        out = run_sweep("SASRec", "tiny", None, settings(kd="prmkd", data_path=str(folder), **files), str(sweep))
        trials = pd.read_csv(tmp_path / str(number) / "output" / "trials.csv").drop(columns=["id", "seconds"])
        assert len(trials) == 3 and (trials.status == "finished").all()
        chosen = trials.sort_values("kd_weight").to_dict("list"), out["best"], out["best_valid_score"]
        found.append((str(chosen), out["winner"]["test_result"]))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
