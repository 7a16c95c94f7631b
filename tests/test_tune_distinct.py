"""No setting twice in a sweep, further trials after its end, and whose sweep goes on."""

import json
import os

import pytest
from ray.tune import Experiment
from ray.tune.search.basic_variant import BasicVariantGenerator

from recbole_prmkd import UserError
from recbole_prmkd.tune.distinct import random_settings
from recbole_prmkd.tune.plan import Plan, check_free, check_owner, with_trials
from recbole_prmkd.tune.search import ray_domain, tune_config
from recbole_prmkd.tune.settings import SweepSettings

FOUR = {"learning_rate": {"choice": [0.1, 0.01]}, "mlp_hidden_size": {"choice": [[8], [4, 4]]}}
MIXED = {"dropout_prob": {"quniform": [0, 0.2, 0.1]}, "n_layers": {"integer": [1, 2]}}
REAL = {"learning_rate": {"loguniform": [0.001, 0.1]}, "n_layers": {"integer": [1, 2]}}
BASE = {"valid_metric": "MRR@10", "valid_metric_bigger": True}


def sweep_of(space, **more):
    return SweepSettings.model_validate({"space": space, **more})


def space_of(sweep):
    return {domain.key: ray_domain(domain) for domain in sweep.domains}


def experiment(sweep, samples):
    return Experiment("x", lambda config: None, config=space_of(sweep), num_samples=samples)


def suggested(sweep, before=(), score=0.5):
    """The settings of all trials of a search, each of which ends with the same score."""
    config = tune_config(sweep, BASE, 5, before)
    search, found = config.search_alg, []
    if sweep.search == "optuna":
        search.set_search_properties(None, None, space_of(sweep))
        for number in range(config.num_samples):
            found.append(search.suggest(str(number)))
            search.on_trial_complete(str(number), {"best_score": score})
        return found
    search.add_configurations(experiment(sweep, config.num_samples))
    while (trial := search.next_trial()) is not None:
        found.append(trial.config)
    return found


@pytest.mark.parametrize("search", ["random", "optuna"])
@pytest.mark.parametrize(("space", "size"), [(FOUR, 4), (MIXED, 6)])
def test_a_small_space_is_tried_once_each(search, space, size):
    sweep = sweep_of(space, search=search, trials=10)
    assert sweep.planned == size
    found = suggested(sweep)
    assert len(found) == size == len({json.dumps(settings, sort_keys=True) for settings in found})


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_settings_repeat_on_request(search):
    sweep = sweep_of(FOUR, search=search, trials=10, repeat=True)
    found = suggested(sweep)
    assert len(found) == sweep.planned == 10
    assert len({json.dumps(settings) for settings in found}) <= 4


def test_a_search_of_real_numbers_samples_what_ray_samples():
    sweep = sweep_of(REAL, trials=7, seed=3)
    search = BasicVariantGenerator(random_state=3)
    search.add_configurations(experiment(sweep, 7))
    assert suggested(sweep) == [search.next_trial().config for _ in range(7)]


@pytest.mark.parametrize("space", [FOUR, REAL])
def test_a_larger_number_only_appends(space):
    few, many = (random_settings(sweep_of(space).domains, space_of(sweep_of(space)), n, seed=1) for n in (3, 4))
    assert many[:3] == few and len(many) == 4


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_further_trials_are_others(search):
    first = suggested(sweep_of(MIXED, search=search, trials=2))
    before = [(settings, 0.1 if number else None) for number, settings in enumerate(first)]  # one has failed
    further = suggested(sweep_of(MIXED, search=search, trials=5), before)
    assert len(further) == 3
    assert len({json.dumps(settings, sort_keys=True) for settings in [*first, *further]}) == 5


def plan_of(**more):
    return Plan(model="BPR", dataset="tiny", settings={}, sweep=sweep_of(REAL, **more), data="")


def test_a_finished_sweep_takes_further_trials():
    plan = with_trials(plan_of(trials=20), 60)
    assert plan.batches == [20, 40]
    assert with_trials(plan, 60) == plan  # the same command after an interruption
    assert with_trials(plan, 61).batches == [20, 40, 1]


def test_what_cannot_have_further_trials_is_rejected():
    with pytest.raises(UserError, match="has 20 trials already: give a larger number than --tune_trials=10"):
        with_trials(plan_of(trials=20), 10)
    small = plan_of(trials=20).model_copy(update={"sweep": sweep_of(FOUR, trials=20)})
    with pytest.raises(UserError, match="All 4 settings of the space are tried already"):
        with_trials(small, 30)
    grid = small.model_copy(update={"sweep": sweep_of(FOUR, search="grid")})
    with pytest.raises(UserError, match="grid tries every combination"):
        with_trials(grid, 30)


def test_another_users_sweep_goes_on_only_if_trusted(tmp_path, monkeypatch):
    (tmp_path / "ray-2").mkdir()
    check_owner(tmp_path, trusted=False)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    check_owner(tmp_path, trusted=True)
    with pytest.raises(UserError, match=r"belongs to another user.*add --tune_trust_folder"):
        check_owner(tmp_path, trusted=False)


def test_a_folder_of_a_sweep_that_was_killed_as_it_began_is_free(tmp_path):
    folder = tmp_path / "my sweeps; all"
    folder.mkdir()
    (folder / ".part-sweep.json-7").write_text("{")
    check_free(folder)
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"go on with --tune_resume='[^']*/my sweeps; all', or name another"):
        check_free(folder)
