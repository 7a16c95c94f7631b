"""The search before a comparison: the same for the student alone as for the others."""

import json
from dataclasses import replace

import pytest
import yaml

from recbole_prmkd.compare import run, work
from recbole_prmkd.compare.grid import Cell, make_grid, open_folder
from recbole_prmkd.compare.tuning import (
    check_tuning,
    is_tuned,
    read_tuning,
    space_of,
    sweep_jobs,
    with_winners,
)
from recbole_prmkd.errors import UserError


@pytest.fixture
def grid(settings, tmp_path):
    """A grid whose cells are searched over this space."""

    def make(space, trials=4, kds="none,mean", models="SASRec,BPR"):
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"space": space}))
        return replace(make_grid(kds, models, "tiny", "2", None, settings()), tune=read_tuning(str(file), trials))

    return make


SPACE = {
    "learning_rate": {"loguniform": [0.001, 0.01]},
    "n_layers": {"choice": [1, 2]},
    "kd_weight": {"uniform": [1, 9]},
}


def test_each_searches_what_it_has(grid):
    searched = grid(SPACE)
    check_tuning(searched)
    keys = {
        (model, kd): set(space_of(searched, Cell("tiny", model, kd, 2020)))
        for model in ("SASRec", "BPR")
        for kd in ("none", "mean")
    }
    assert keys["SASRec", "mean"] == {"learning_rate", "n_layers", "kd_weight"}
    assert keys["SASRec", "none"] == {"learning_rate", "n_layers"}
    assert keys["BPR", "none"] == {"learning_rate"} and keys["BPR", "mean"] == {"learning_rate", "kd_weight"}


def test_a_warm_started_student_searches_what_it_reads(grid):
    searched = grid({**SPACE, "kd_item_init_std": {"choice": [0.1, 0.2]}}, kds="warm_start")
    keys = space_of(searched, Cell("tiny", "SASRec", "warm_start", 2020))
    assert set(keys) == {"learning_rate", "n_layers", "kd_item_init_std"}


def test_a_search_has_no_guard_and_the_cells_have_it(grid, tmp_path):
    guarded = grid(SPACE, kds="none,warm_start,mean", models="SASRec")
    guarded = replace(guarded, settings={**guarded.settings, "kd_guard": True})
    assert not any(job.settings["kd_guard"] for job in sweep_jobs(guarded, tmp_path))
    own = {cell.kd: guarded.settings_of(cell).get("kd_guard", False) for cell in guarded.cells()}
    assert own == {"none": False, "warm_start": False, "mean": True}


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"kd_weight": {"uniform": [1, 9]}}, "BPR, none.*learning_rate"),
        ({**SPACE, "learning_rat": {"uniform": [0.1, 0.2]}}, "learning_rat"),
        ({**SPACE, "kd": {"choice": ["none", "mean"]}}, "kd "),
        ({**SPACE, "epochs": {"choice": [1, 2]}}, "epochs is in the search space and fixed"),
    ],
)
def test_searches_that_are_rejected(space, words, grid):
    with pytest.raises(UserError, match=words):
        check_tuning(grid(space, models="BPR"))


def test_a_grid_gives_none_more_trials_than_the_others(grid):
    lists = {"learning_rate": {"choice": [0.001, 0.01]}, "kd_weight": {"choice": [1, 5, 9]}}
    both = grid(lists, trials=None, models="BPR")
    uneven = replace(both, tune={**both.tune, "search": "grid"})
    with pytest.raises(UserError, match="2 settings for BPR, none and 6 settings for BPR, mean: use random or optuna"):
        check_tuning(uneven)
    check_tuning(both)  # sampled, as many for each
    check_tuning(replace(uneven, tune={**uneven.tune, "space": {"learning_rate": lists["learning_rate"]}}))
    own = {
        "learning_rate": lists["learning_rate"],
        "n_layers": {"choice": [1, 2]},
    }  # SASRec has more, each KD method as many
    check_tuning(replace(uneven, models=("SASRec", "BPR"), tune={**uneven.tune, "space": own}))


def test_cells_are_checked_with_the_settings_that_were_found(grid, settings, tmp_path, monkeypatch):
    searched = grid({key: SPACE[key] for key in ("learning_rate", "kd_weight")}, models="BPR")
    best = sweep_jobs(searched, tmp_path / "out")[1].folder / "sweep" / "best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text(yaml.safe_dump({"learning_rate": 0.004, "kd_weight": 7.0}))
    open_folder(searched.with_data(), tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "comparison.json").rename(tmp_path / "out" / "comparison.json")
    seen = []

    def check(found, folder):
        seen.append(found.settings_of(Cell("tiny", "BPR", "mean", 2021))["kd_weight"])
        raise UserError("seen")

    monkeypatch.setattr(run, "check_finished", check)
    with pytest.raises(UserError, match="seen"):
        run.run_comparison(
            "none,mean", "BPR", "tiny", "2", None, settings(), None, None, str(tmp_path / "sweep.yaml"), 4
        )
    assert seen == [7.0]


def test_the_winner_holds_for_all_seeds(grid, tmp_path):
    searched = grid(SPACE, models="BPR")
    jobs = sweep_jobs(searched, tmp_path)
    assert [job.more["sweep"]["trials"] for job in jobs] == [4, 4]
    assert {job.settings["seed"] for job in jobs} == {2020} and "kd_weight" not in jobs[0].more["sweep"]["space"]
    best = jobs[1].folder / "sweep" / "best.yaml"
    best.parent.mkdir(parents=True)
    best.write_text(yaml.safe_dump({"learning_rate": 0.004, "kd_weight": 7.0, "epochs": 99}))
    assert sweep_jobs(searched, tmp_path) == jobs[:1]
    found = with_winners(searched, tmp_path)
    for seed in (2020, 2021):
        own = found.settings_of(Cell("tiny", "BPR", "mean", seed))
        assert (own["learning_rate"], own["kd_weight"], own["epochs"], own["seed"]) == (0.004, 7.0, 2, seed)
    assert is_tuned(found, Cell("tiny", "BPR", "mean", 2021)) and not is_tuned(found, Cell("tiny", "BPR", "none", 2020))


def test_another_search_is_another_comparison(grid, tmp_path):
    open_folder(grid(SPACE), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["tune"]["trials"] == 4
    open_folder(grid(SPACE), tmp_path / "out")
    with pytest.raises(UserError, match="--tune"):
        open_folder(grid(SPACE, trials=5), tmp_path / "out")


def test_a_sweep_that_has_begun_is_resumed_alone(tmp_path, monkeypatch):
    """With its settings beside it, a resume would be rejected."""
    calls = []
    monkeypatch.setattr(work, "run_sweep", lambda *given, **named: calls.append((given, named)))
    content = {"model": "BPR", "dataset": "tiny", "settings": {"seed": 1}}
    content |= {"sweep": {"space": {}}, "ray_address": None}
    work.WORK["tune"](content, tmp_path)
    assert calls[0][0][:2] == ("BPR", "tiny") and calls[0][1]["sweep_file"] == str(tmp_path / "sweep.yaml")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").touch()
    work.WORK["tune"](content, tmp_path)
    assert calls[1] == ((), {"resume": str(tmp_path / "sweep"), "ray_address": None, "trust_folder": False})
    work.WORK["tune"](content | {"trust_folder": True}, tmp_path)
    assert calls[2][1]["trust_folder"] is True
