"""What a sweep leaves, from made-up trials: no Ray is started."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from recbole_prmkd import UserError
from recbole_prmkd.tune.figures import IMPORTANCE, PARALLEL, as_study, draw_sweep
from recbole_prmkd.tune.outcome import Trial, check_ended
from recbole_prmkd.tune.settings import SweepSettings
from recbole_prmkd.tune.space import Domain, read_space


def trial(name, score, **settings):
    return Trial(name, "finished", settings, score, 1, 1.0, "")


@pytest.mark.parametrize("bounds", [[0.2, 0.3, 0.1], [0.1, 0.6, 0.1], [0.1, 0.7, 0.1], [0, 0.5, 0.1], [2, 8, 2]])
def test_steps_are_the_numbers_that_were_written(bounds):
    """Ray multiplies floats, and so leaves the bounds: 3 x 0.1 is above 0.3."""
    (domain,) = read_space({"kd_dropout": {"quniform": bounds}})
    low, high, step = bounds
    for number in range(round(low / step), round(high / step) + 1):
        for value in (domain.drawn(number * step), domain.clamped(number * step)):
            assert low <= value <= high and value == round(number * step, 6)
    study = as_study([trial("a", 0.1, kd_dropout=round(high / step) * step)], [domain], bigger=True)  # as stored before
    assert study.trials[0].params["kd_dropout"] == high


def test_what_optuna_refuses_costs_the_figures_alone(tmp_path, caplog):
    domains = [Domain("kd_loss", "choice", ("kl", "ce"))]
    draw_sweep([trial("a", 0.1, kd_loss="mse"), trial("b", 0.2, kd_loss="kl")], domains, "MRR@10", True, tmp_path)
    assert not list(tmp_path.iterdir())
    assert PARALLEL in caplog.text and IMPORTANCE in caplog.text


@pytest.mark.parametrize(
    ("sweep", "ended", "sentence"),
    [
        ({"trials": 3}, [True, True, True], None),
        ({"trials": 3}, [True, False, True], "2 of 3"),  # one was training
        ({"trials": 3}, [True, True], "2 of 3"),  # one was not drawn yet
        ({"search": "grid"}, [True] * 4, None),
        ({"search": "grid"}, [True] * 3, "3 of 4"),
    ],
)
def test_an_interrupted_search_has_no_winner(sweep, ended, sentence):
    space = {"kd_loss": {"choice": ["kl", "ce"]}, "kd_curriculum": {"choice": ["none", "easy"]}}
    planned = SweepSettings.model_validate({"space": space, **sweep}).planned
    trials = [SimpleNamespace(is_finished=lambda over=over: over) for over in ended]
    expected = nullcontext() if sentence is None else pytest.raises(UserError, match=f"{sentence}.*--tune_resume=here")
    with expected:
        check_ended(trials, planned, Path("here"))
