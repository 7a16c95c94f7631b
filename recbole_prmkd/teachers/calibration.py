"""The temperature of a teacher's soft targets: the one under which held-out targets are most likely."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional

TEMPERATURES = tuple(float(tau) for tau in np.geomspace(0.02, 20.0, 61))  # in units of the scores' standard deviation


def least(surprise: Callable[[float], float], temperatures: Sequence[float]) -> tuple[float, float]:
    """The least surprise and its temperature; it has one minimum in the ascending temperatures."""
    low, high = 0, len(temperatures) - 1
    while low < high:
        middle = (low + high) // 2
        if surprise(temperatures[middle]) <= surprise(temperatures[middle + 1]):
            high = middle
        else:
            low = middle + 1
    return surprise(temperatures[low]), temperatures[low]


def temperature_of(scores: Tensor, targets: Tensor) -> float:
    """The temperature of these scores [V, n_items], -inf for what is no candidate; 1 where they say nothing.

    targets: [V] the item of each example that came next, a candidate of it.
    """
    spread = float(scores[scores.isfinite()].double().std()) if scores.isfinite().sum() > 1 else 0.0
    if not spread > 0:
        return 1.0

    def surprise(temperature: float) -> float:
        return float(functional.cross_entropy(scores / temperature, targets))

    return least(surprise, [spread * each for each in TEMPERATURES])[1]
