"""For whom distillation helps: the gain in NDCG@10 of each test example, from the rank of its target.

Seeds say whether another training would show a gain, users whether other users would: hence a 95 % interval of the mean
over the test examples (bootstrap), and the gain in groups by history length and by the target's popularity.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from recbole_prmkd.compare.gather import Gathered
from recbole_prmkd.compare.grid import BASELINE, Cell

GROUPS = 4  # of about equally many test examples
BY = {"history": "items in the user's history", "popularity": "training examples of the target"}
_RESAMPLES = 2000


def ndcg_of_ranks(ranks: np.ndarray, cutoff: int = 10) -> np.ndarray:
    """NDCG of examples with one target each, from the target's rank: 1 / log2(1 + rank), 0 behind the cut-off."""
    return np.where(ranks <= cutoff, 1 / np.log2(1.0 + ranks), 0.0)


def user_gains(gathered: Gathered, dataset: str, model: str, kd: str, rank: str = "rank") -> np.ndarray | None:
    """Each test example's gain over the student alone, averaged over the seeds that have both, [N].

    Args:
        rank: `rank` or `rank_unseen`, in which students of all kinds are ranked alike.
    """
    gains = [own - plain for own, plain, _ in _pairs(gathered, dataset, model, kd, rank)]
    return np.mean(gains, axis=0) if gains else None


def interval(gains: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over users, by the bootstrap (percentiles)."""
    if np.ptp(gains) == 0:
        return float(gains.mean()), float(gains.mean())
    found = stats.bootstrap(
        (gains,), np.mean, n_resamples=_RESAMPLES, batch=50, method="percentile", rng=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def gain_by_group(
    gathered: Gathered, dataset: str, model: str, by: str, rank: str = "rank_unseen"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Gain in groups of test examples: mean and deviation over the seeds, empty where there are no ranks.

    Args:
        by: `history` or `popularity`.
    Returns:
        two tables, each with a row per group (such as `3-5`) and a column per KD method.
    """
    of_seeds = {
        (kd, seed): pd.Series(own - plain).groupby(_groups(stored[by]), observed=True).mean()
        for kd in gathered.grid.kds
        if kd != BASELINE
        for seed, (own, plain, stored) in enumerate(_pairs(gathered, dataset, model, kd, rank))
    }
    if not of_seeds:
        return pd.DataFrame(), pd.DataFrame()
    by_kd = pd.DataFrame(of_seeds).T.groupby(level=0, sort=False)  # [KD methods and seeds, groups]
    return by_kd.mean().T, by_kd.std().T


def group_bounds(values: np.ndarray, number: int = GROUPS) -> list[tuple[int, int]]:
    """Least and greatest value of each group of about equally many; equal values stay together, in a group of their own
    where they are many."""
    sizes, counts = np.unique(values, return_counts=True)
    bounds: list[tuple[int, int]] = []
    first, inside, left = 0, 0, len(values)
    for last, (count, following) in enumerate(zip(counts, [*counts[1:], 0], strict=True)):
        inside += count
        wanted = left / (number - len(bounds))
        # Ends where the next value would bring it further above what is wanted than it is below.
        if last == len(sizes) - 1 or (len(bounds) < number - 1 and inside + following / 2 >= wanted):
            bounds.append((int(sizes[first]), int(sizes[last])))
            first, inside, left = last + 1, 0, left - inside
    return bounds


def _groups(values: np.ndarray) -> pd.Series:
    """The group of each test example, [N]."""
    bounds = group_bounds(values)
    names = [str(low) if low == high else f"{low}-{high}" for low, high in bounds]
    return pd.cut(pd.Series(values), [-np.inf, *(high for _, high in bounds)], labels=names)


def _pairs(
    gathered: Gathered, dataset: str, model: str, kd: str, rank: str
) -> Iterator[tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]]:
    """For each seed that has both: NDCG@10 with distillation and without [N], and the stored arrays of the latter."""
    for seed in gathered.grid.seeds:
        plain, own = (gathered.ranks(Cell(dataset, model, name, seed)) for name in (BASELINE, kd))
        if plain is not None and own is not None and np.array_equal(plain["item"], own["item"]):
            yield ndcg_of_ranks(own[rank]), ndcg_of_ranks(plain[rank]), plain
