"""Search algorithm and scheduler of a sweep, by the names that its file uses; all are Ray Tune's own."""

from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from recbole.config import Config

from recbole_prmkd.tune.settings import Asha, Median, Pbt, SweepSettings
from recbole_prmkd.tune.space import Domain, as_option
from recbole_prmkd.tune.trial import BEST

_TIME = "training_iteration"  # counts validations
_CONTINUOUS: dict[str, Any] = {"uniform": tune.uniform, "loguniform": tune.loguniform, "quniform": tune.quniform}


def param_space(sweep: SweepSettings) -> dict[str, Any]:
    """The space as Ray Tune's own."""
    return {domain.key: _ray_domain(domain, grid=sweep.search == "grid") for domain in sweep.domains}


def _ray_domain(domain: Domain, grid: bool) -> Any:
    values = domain.values
    if domain.kind == "choice":
        options = [as_option(value) for value in values]
        return tune.grid_search(options) if grid else tune.choice(options)
    if domain.kind == "integer":
        return tune.randint(values[0], values[1] + 1)
    return _CONTINUOUS[domain.kind](*values)


def tune_config(sweep: SweepSettings, base: Config, max_length: int) -> tune.TuneConfig:
    """How trials are drawn, stopped and compared.

    Args:
        longest: validations of the longest trial.
    """
    mode = "max" if base["valid_metric_bigger"] else "min"
    # A population's students inherit scores from each other, so there the present score counts.
    metric = base["valid_metric"].lower() if isinstance(sweep.scheduler, Pbt) else BEST
    return tune.TuneConfig(
        metric=metric,
        mode=mode,
        search_alg=_search(sweep, metric, mode),
        scheduler=_scheduler(sweep, max_length),
        num_samples=sweep.samples,
        max_concurrent_trials=sweep.max_concurrent if sweep.search == "optuna" else None,
        reuse_actors=True,  # importing RecBole and torch takes seconds
        trial_name_creator=lambda trial: trial.trial_id,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _search(sweep: SweepSettings, metric: str, mode: str) -> Any:
    if sweep.search == "optuna":
        return OptunaSearch(metric=metric, mode=mode, seed=sweep.seed)
    return BasicVariantGenerator(random_state=sweep.seed, max_concurrent=sweep.max_concurrent or 0)


def _scheduler(sweep: SweepSettings, max_length: int) -> TrialScheduler:
    chosen = sweep.scheduler
    if isinstance(chosen, Asha):
        grace = min(chosen.grace, max_length)
        return ASHAScheduler(time_attr=_TIME, max_t=max_length, grace_period=grace, reduction_factor=chosen.reduction)
    if isinstance(chosen, Median):
        return MedianStoppingRule(time_attr=_TIME, grace_period=chosen.grace, min_samples_required=chosen.others)
    if isinstance(chosen, Pbt):
        return PopulationBasedTraining(
            time_attr=_TIME,
            perturbation_interval=chosen.interval,
            quantile_fraction=chosen.share,
            resample_probability=chosen.resample,
            hyperparam_mutations=_mutations(sweep.domains),
            custom_explore_fn=lambda values: {d.key: d.clamped(values[d.key]) for d in sweep.domains},
        )
    return FIFOScheduler()


def _mutations(domains: Sequence[Domain]) -> dict[str, Any]:
    """A choice is a list to PBT, in which it moves to a neighbour."""
    return {
        domain.key: [as_option(value) for value in domain.values]
        if domain.kind == "choice"
        else _ray_domain(domain, False)
        for domain in domains
    }
