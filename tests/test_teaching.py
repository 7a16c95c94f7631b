"""What teaches nothing is said, and a curriculum starts with what teaches."""

import numpy as np
import pytest
import torch

from recbole_prmkd import run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.distil import objective
from recbole_prmkd.distil.curriculum import Curriculum
from recbole_prmkd.distil.pacing import scheduled_examples
from recbole_prmkd.recbole_host.config import load_config


@pytest.mark.parametrize("order", ["easy", "hard"])
def test_a_curriculum_starts_with_examples_that_have_a_history(order, settings):
    config = load_config("BPR", "tiny", config_dict=settings(kd="prmkd", kd_curriculum=order))
    train = load_split(config).train
    curriculum = Curriculum(config, train)
    with_history = int((train.lengths > 0).sum())
    share = with_history / len(train)
    assert 0 < share < 1
    shown = scheduled_examples(curriculum.difficulty, share, order, seed=1)
    assert torch.equal(shown, torch.nonzero(train.lengths > 0).squeeze(1))


def test_that_nothing_is_distilled_is_said_at_the_start_and_at_the_end(settings, tmp_path, capfd):
    """External vectors of one item and one user: of no example two candidates are covered."""
    vectors = np.ones((1, 4), dtype=np.float32)
    files = {part: str(tmp_path / f"{part}.npz") for part in ("items", "users")}
    np.savez(files["items"], item_id=np.array(["i0"]), feat=vectors)
    np.savez(files["users"], user_id=np.array(["u0"]), feat=vectors)
    given = {"kd_teachers": ["Vectors"], "kd_vectors_items": files["items"], "kd_vectors_users": files["users"]}
    run = run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="mean", **given))
    out = "".join(capfd.readouterr())
    assert "training examples teach" in out and "Nothing was distilled" in out
    assert run["result"]["student"]["kd"]["teaching"] == 0


def test_all_batches_count(settings, capfd, monkeypatch):
    """Masks that leave all but the first batch their target alone."""
    own, calls = objective.candidate_mask, []

    def few(items, targets, excluded):
        mask = own(items, targets, excluded)
        calls.append(len(targets))
        return mask if len(calls) == 1 else mask & (items == targets[:, None])

    monkeypatch.setattr(objective, "candidate_mask", few)
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="prmkd", train_batch_size=16, epochs=1))
    assert len(calls) > 2
    (epoch,), share = run["result"]["distillation"], run["result"]["student"]["kd"]["teaching"]
    assert share == epoch["teaching"] and 0 < share < 0.5
    out = "".join(capfd.readouterr())
    assert f"Only {100 * share:.0f} % of the examples of the first epoch teach" in out
    assert "Nothing was distilled" not in out


def test_a_run_that_teaches_says_nothing(settings, capfd):
    run = run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="prmkd"))
    out = "".join(capfd.readouterr())
    assert " teach: " not in out and "Nothing was distilled" not in out
    assert 0.5 < run["result"]["student"]["kd"]["teaching"] <= 1
