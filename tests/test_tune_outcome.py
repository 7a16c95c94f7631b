"""What a sweep leaves, from made-up trials: no Ray is started."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from recbole_prmkd import UserError
from recbole_prmkd.tune.outcome import IMPORTANCE, PARALLEL, check_ended, draw_sweep
from recbole_prmkd.tune.settings import SweepSettings
from recbole_prmkd.tune.space import Domain, read_space


def trial(name, score, **settings):
    return {"id": name, "status": "finished", **settings, "valid mrr@10": score}


@pytest.mark.parametrize("bounds", [[0.2, 0.3, 0.1], [0.1, 0.6, 0.1], [0.1, 0.7, 0.1], [0, 0.5, 0.1], [2, 8, 2]])
def test_steps_are_the_numbers_that_were_written(bounds):
    """Ray multiplies floats, and so leaves the bounds: 3 x 0.1 is above 0.3."""
    (domain,) = read_space({"kd_dropout": {"quniform": bounds}})
    low, high, step = bounds
    for number in range(round(low / step), round(high / step) + 1):
        value = domain.setting(number * step)
        assert low <= value <= high and value == round(number * step, 6)


def test_the_figures_of_a_few_trials(tmp_path):
    domains = read_space(
        {
            "kd_dropout": {"quniform": [0.1, 0.7, 0.1]},
            "kd_weight": {"loguniform": [0.1, 20]},
            "kd_pacing_length": {"integer": [2, 9]},
            "mlp_hidden_size": {"choice": [[8], [4, 4]]},
        }
    )
    sampled = [(0.30000000000000004, 0.1, 2, "[8]"), (0.7000000000000001, 20, 9, "[4, 4]"), (0.5, 1, 5, "[8]")]
    trials = [
        trial(str(number), number / 10, **{d.key: d.setting(value) for d, value in zip(domains, values, strict=True)})
        for number, values in enumerate(sampled)
    ]
    trials.append({**trials[0], "id": "9", "status": "failed", "valid mrr@10": None})
    draw_sweep(trials, domains, "valid mrr@10", True, tmp_path)
    assert all((tmp_path / name).stat().st_size > 1000 for name in (IMPORTANCE, PARALLEL))


def test_what_optuna_refuses_costs_the_figures_alone(tmp_path, caplog):
    domains = [Domain("kd_loss", "choice", ("kl", "ce"))]
    trials = [trial("a", 0.1, kd_loss="mse"), trial("b", 0.2, kd_loss="kl")]
    draw_sweep(trials, domains, "valid mrr@10", True, tmp_path)
    assert not list(tmp_path.iterdir())
    assert PARALLEL in caplog.text and IMPORTANCE in caplog.text


@pytest.mark.parametrize(
    ("sweep", "ended", "sentence"),
    [
        ({"trials": 3}, [True, True, True], None),
        ({"trials": 3}, [True, False, True], "2 of 3"),  # one was training
        ({"trials": 3}, [True, True], "2 of 3"),  # one was not sampled yet
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
