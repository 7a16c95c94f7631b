"""Two figures of a sweep as files: how much each setting matters, and which values went with which score.

The importances are those of Optuna's fANOVA (Hutter et al., ICML 2014), whatever the search was.
"""

import warnings
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

import optuna
from matplotlib import pyplot
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.visualization import matplotlib as drawn

from recbole_prmkd.tune.outcome import Trial
from recbole_prmkd.tune.space import Domain, as_option

IMPORTANCE, PARALLEL = "importance.svg", "parallel_coordinates.svg"


def draw_sweep(trials: Sequence[Trial], domains: Sequence[Domain], metric: str, bigger: bool, folder: Path) -> None:
    """Write both figures; what too few trials do not give is left out with a message."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = as_study(trials, domains, bigger)
    except ValueError as error:  # a value that Optuna refuses
        getLogger().warning(f"{PARALLEL} and {IMPORTANCE} are not drawn: {error}")
        return
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    figures = {
        PARALLEL: lambda: drawn.plot_parallel_coordinate(study, target_name=metric),
        IMPORTANCE: lambda: drawn.plot_param_importances(study, evaluator=evaluator, target_name=metric),
    }
    before = pyplot.get_backend()
    pyplot.switch_backend("agg")  # files only, no window
    try:
        for name, draw in figures.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                try:
                    draw()
                except (RuntimeError, ValueError) as error:
                    getLogger().warning(f"{name} is not drawn: {error}")
                    continue
            if name == PARALLEL:  # an axis for each key, each with labels of its own
                pyplot.gcf().set_size_inches(max(8.0, 1.9 * len(domains)), 6)
            pyplot.savefig(folder / name, bbox_inches="tight")
    finally:
        pyplot.close("all")
        pyplot.switch_backend(before)


def as_study(trials: Sequence[Trial], domains: Sequence[Domain], bigger: bool) -> optuna.Study:
    """The trials that have a score, as Optuna holds them."""
    study = optuna.create_study(direction="maximize" if bigger else "minimize")
    distributions = {domain.key: _distribution(domain) for domain in domains}
    for trial in trials:
        if trial.status != "failed" and trial.score is not None:
            # Clamped once more: trials of an earlier version may lie a rounding error outside.
            values = {domain.key: as_option(domain.clamped(trial.settings[domain.key])) for domain in domains}
            study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=trial.score))
    return study


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.kind == "choice":
        return CategoricalDistribution([as_option(value) for value in domain.values])
    low, high = domain.values[:2]
    if domain.kind == "integer":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "loguniform")
