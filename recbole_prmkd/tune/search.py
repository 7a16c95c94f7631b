"""Space, search algorithm and scheduler of a sweep as Ray Tune's own objects."""

from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune import schedulers
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from recbole.config import Config

from recbole_prmkd.tune.distinct import DistinctOptuna, Sampled, random_settings
from recbole_prmkd.tune.settings import Asha, Median, Pbt, SweepSettings
from recbole_prmkd.tune.space import Domain, as_option
from recbole_prmkd.tune.trial import BEST

_TIME = "training_iteration"  # counts validations
Tried = tuple[Sampled, float | None]  # a trial's settings and its best validation score, if it has any
_RANGES: dict[str, Any] = {
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "quniform": tune.quniform,
    "integer": lambda low, high: tune.randint(low, high + 1),
}


def ray_domain(domain: Domain, grid: bool = False) -> Any:
    """One key's values as Ray Tune samples them, or tries each of them."""
    if domain.kind == "choice":
        options = [as_option(value) for value in domain.values]
        return tune.grid_search(options) if grid else tune.choice(options)
    return _RANGES[domain.kind](*domain.values)


def tune_config(sweep: SweepSettings, base: Config, max_length: int, before: Sequence[Tried] = ()) -> tune.TuneConfig:
    """How trials are sampled, stopped and compared.

    Args:
        max_length: validations of the longest trial.
        before: the trials that the sweep has had already, when it takes further ones.
    """
    mode = "max" if base["valid_metric_bigger"] else "min"
    # A population's students inherit scores from each other, so there the present score counts.
    metric = base["valid_metric"].lower() if isinstance(sweep.scheduler, Pbt) else BEST
    optuna = sweep.search == "optuna"
    return tune.TuneConfig(
        metric=metric,
        mode=mode,
        search_alg=_optuna(sweep, metric, mode, before) if optuna else _random_or_grid(sweep, len(before)),
        scheduler=_scheduler(sweep, max_length),
        num_samples=1 if sweep.search == "grid" else sweep.planned - len(before),
        max_concurrent_trials=sweep.max_concurrent if optuna else None,
        reuse_actors=True,  # importing RecBole and torch takes seconds
        trial_name_creator=lambda trial: trial.trial_id,
        trial_dirname_creator=lambda trial: trial.trial_id,
    )


def _random_or_grid(sweep: SweepSettings, done: int) -> BasicVariantGenerator:
    points = None
    if sweep.search == "random" and (done or not sweep.repeats):
        space = {domain.key: ray_domain(domain) for domain in sweep.domains}
        points = random_settings(sweep.domains, space, sweep.planned, sweep.seed, sweep.repeats)[done:]
    concurrent = sweep.max_concurrent or 0
    return BasicVariantGenerator(points_to_evaluate=points, random_state=sweep.seed, max_concurrent=concurrent)


def _optuna(sweep: SweepSettings, metric: str, mode: str, before: Sequence[Tried]) -> OptunaSearch:
    """A search of further trials starts from the scores of those before, with random numbers of its own."""
    scored = [(settings, score) for settings, score in before if score is not None]
    given: dict[str, Any] = {"metric": metric, "mode": mode, "seed": sweep.seed + len(before)}
    if scored:
        given |= {"points_to_evaluate": [each[0] for each in scored], "evaluated_rewards": [each[1] for each in scored]}
    if sweep.repeats:
        return OptunaSearch(**given)
    return DistinctOptuna(sweep.domains, [settings for settings, _ in before], **given)


def _scheduler(sweep: SweepSettings, max_length: int) -> schedulers.TrialScheduler:
    chosen, domains = sweep.scheduler, sweep.domains
    if isinstance(chosen, Asha):
        return schedulers.ASHAScheduler(
            time_attr=_TIME,
            max_t=max_length,
            grace_period=min(chosen.grace, max_length),
            reduction_factor=chosen.reduction,
        )
    if isinstance(chosen, Median):
        return schedulers.MedianStoppingRule(
            time_attr=_TIME, grace_period=chosen.grace, min_samples_required=chosen.others
        )
    if isinstance(chosen, Pbt):
        choices = {d.key: [as_option(value) for value in d.values] for d in domains if d.kind == "choice"}
        return schedulers.PopulationBasedTraining(
            time_attr=_TIME,
            perturbation_interval=chosen.interval,
            quantile_fraction=chosen.share,
            resample_probability=chosen.resample,
            # Of a list PBT takes a neighbour.
            hyperparam_mutations={domain.key: choices.get(domain.key, ray_domain(domain)) for domain in domains},
            custom_explore_fn=lambda values: {d.key: as_option(d.setting(values[d.key])) for d in domains},
        )
    return schedulers.FIFOScheduler()
