"""No setting twice: the settings of a random search as one list, and an Optuna search that avoids what was tried.

In a space of a few settings a search soon samples one of them again, which would give the same score.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.variant_generator import generate_variants

from recbole_prmkd.tune.space import Domain

_TRIES = 100  # samples in a row that were tried before, after which an untried setting is taken from the space itself
Sampled = dict[str, Any]  # one trial's values as Ray samples them


def random_settings(
    domains: Sequence[Domain], space: Mapping[str, Any], number: int, seed: int, repeats: bool = False
) -> list[Sampled]:
    """Different settings for this number of trials (all there are, if fewer), sampled as Ray's random search does.

    Args:
        space: the domains as Ray's. number: a larger one only appends to the list.
        repeats: a setting may come again.
    """
    generator, found, tried = np.random.default_rng(seed), list[Sampled](), set[str]()
    while len(found) < number:
        for _ in range(_TRIES):
            _, spec = next(generate_variants({"config": dict(space)}, random_state=generator))
            if repeats or _key(spec["config"], domains) not in tried:
                settings: Sampled | None = spec["config"]
                break
        else:
            settings = _untried(domains, tried)
        if settings is None:
            break
        tried.add(_key(settings, domains))
        found.append(settings)
    return found


class DistinctOptuna(OptunaSearch):
    """Optuna's search; where it proposes what was tried it is asked again.

    Args:
        domains: the search space. tried: settings of earlier trials. given: arguments of `OptunaSearch`.
    """

    def __init__(self, domains: Sequence[Domain], tried: Sequence[Sampled] = (), **given: Any) -> None:
        super().__init__(**given)
        self.domains = list(domains)
        self.tried = {_key(settings, domains) for settings in tried}

    def suggest(self, trial_id: str) -> Sampled | None:
        """A setting for this trial."""
        for _ in range(_TRIES):
            settings = super().suggest(trial_id)
            if settings is None or _key(settings, self.domains) not in self.tried:
                break
            self._study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
        else:
            self._study.enqueue_trial(_untried(self.domains, self.tried))
            settings = super().suggest(trial_id)
        if settings is not None:
            self.tried.add(_key(settings, self.domains))
        return settings

    @property
    def _study(self) -> Any:
        return self._ot_study  # made by Ray once it has given the space


def _key(settings: Sampled, domains: Sequence[Domain]) -> str:
    return json.dumps([domain.setting(settings[domain.key]) for domain in domains])


def _untried(domains: Sequence[Domain], tried: set[str]) -> Sampled | None:
    """The first setting of a finite space that was not tried; None: all were."""
    for values in itertools.product(*(domain.options for domain in domains)):
        settings = {domain.key: value for domain, value in zip(domains, values, strict=True)}
        if _key(settings, domains) not in tried:
            return settings
    return None
