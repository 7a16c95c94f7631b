"""Mean and deviation over seeds, and whether a way to distil differs from the student alone.

For each data set, student, metric and way: the pairs are the seeds, each with and without distillation.

- two-sided paired t-test, from three seeds on
- Holm's correction over all comparisons of the table that they stand in, that is of one data set
- effect size Cohen's d_z: mean of the differences over their standard deviation
- a star where the corrected p is below .05 and the mean is better, a dagger where it is worse
- beside it, of the same rows, a 95 % interval of the mean gain over test users (bootstrap), each user's gain averaged
  over the seeds: seeds say whether training again would show it, users whether other users would
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from recbole.evaluator.register import smaller_metrics
from scipy import stats

from recbole_prmkd.compare.gather import TEACHER, Gathered
from recbole_prmkd.compare.grid import BASELINE, Cell

FEWEST_SEEDS, LEVEL = 3, 0.05
BETTER, WORSE = "*", "†"
_RESAMPLES = 2000


@dataclass(frozen=True)
class Paired:
    """A paired test. p and effect are None where `reason` says that there is no test."""

    seeds: int
    gain: float  # mean difference
    p: float | None
    effect: float | None
    reason: str = ""


def paired(plain: Sequence[float], distilled: Sequence[float]) -> Paired:
    """Test the differences of two lists whose positions are the same seeds."""
    differences = np.asarray(distilled, dtype=float) - np.asarray(plain, dtype=float)
    number = len(differences)
    gain = float(differences.mean()) if number else math.nan
    if number < FEWEST_SEEDS:
        return Paired(number, gain, None, None, f"a test needs {FEWEST_SEEDS} seeds")
    # Metrics are rounded to four positions, so a few seeds may differ by the very same amount.
    if np.ptp(differences) < 1e-12:
        return Paired(number, gain, None, None, "the differences do not vary")
    test = stats.ttest_rel(distilled, plain)
    return Paired(number, gain, float(test.pvalue), gain / float(differences.std(ddof=1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return corrected.tolist()


def summary(gathered: Gathered, columns: Sequence[str]) -> pd.DataFrame:
    """One row per data set, student, way and metric.

    Args:
        columns: of `gathered.cells`, such as `test ndcg@10`.
    Returns:
        dataset, model, kd, metric, seeds, mean, deviation (ddof 1), and against the student alone: paired_seeds, whole
        (whether these are all seeds of both), gain, percent, p, p_holm, effect, mark, reason. Teachers have mean alone.
    """
    rows: list[dict[str, object]] = []
    cells = gathered.cells
    if cells.empty:
        return pd.DataFrame(rows)
    order = {name: place for place, name in enumerate([*gathered.grid.kds, TEACHER])}
    for (dataset, model), of_model in cells.groupby(["dataset", "model"], sort=False):
        plain = of_model[of_model["kd"] == BASELINE].set_index("seed")
        for kd in sorted(of_model["kd"].unique(), key=order.__getitem__):
            own = of_model[of_model["kd"] == kd].set_index("seed")
            for metric in columns:
                names = {"dataset": dataset, "model": model, "kd": kd, "metric": metric}
                rows.append(names | _line(own[metric].dropna(), plain[metric].dropna(), kd))
    frame = pd.DataFrame(rows)
    frame["p_holm"] = np.nan
    for _, table in frame[frame["p"].notna()].groupby("dataset"):
        once = _each_once(table)
        corrected = pd.Series(holm(table.loc[once.unique(), "p"].tolist()), index=once.unique())
        frame.loc[table.index, "p_holm"] = corrected[once].to_numpy()
    earned = frame["p_holm"] < LEVEL
    better = (frame["gain"] > 0) != frame["metric"].map(falls)
    frame["mark"] = np.where(earned, np.where(better, BETTER, WORSE), "")
    return frame


def falls(metric: str) -> bool:
    """Whether less of this metric is better: `test rmse`, `averagepopularity@10`."""
    return metric.split(" ")[-1].partition("@")[0] in smaller_metrics


def _each_once(table: pd.DataFrame) -> pd.Series:
    """For each row the first row of the same comparison: for a student that RecBole ranks on unseen items anyway, both
    rankings are one."""
    same = [table["model"], table["kd"], table["metric"].str.replace(" unseen", ""), table["gain"], table["p"]]
    return table.index.to_series().groupby(same).transform("first")


def _line(own: pd.Series, plain: pd.Series, kd: str) -> dict[str, object]:
    line: dict[str, object] = {
        "seeds": len(own),
        "mean": float(own.mean()),
        "deviation": float(own.std(ddof=1)) if len(own) > 1 else math.nan,
    }
    shared = [seed for seed in own.index if seed in plain.index]
    if kd in (BASELINE, TEACHER) or not shared:
        absent = {
            "paired_seeds": 0,
            "whole": True,
            "gain": math.nan,
            "percent": math.nan,
            "p": math.nan,
            "effect": math.nan,
        }
        reason = "" if kd in (BASELINE, TEACHER) else "the student alone has no result of these seeds"
        return {**line, **absent, "reason": reason}
    test = paired(plain.loc[shared].tolist(), own.loc[shared].tolist())
    base = float(plain.loc[shared].mean())
    return {
        **line,
        "paired_seeds": test.seeds,
        "whole": len(shared) == len(own) == len(plain),
        "gain": test.gain,
        "percent": 100 * test.gain / base if base else math.nan,
        "p": math.nan if test.p is None else test.p,
        "effect": math.nan if test.effect is None else test.effect,
        "reason": test.reason,
    }


def ndcg_of_ranks(ranks: np.ndarray, cutoff: int = 10) -> np.ndarray:
    """NDCG of rows with one target each, from the target's rank: 1 / log2(1 + rank), 0 behind the cut-off."""
    return np.where(ranks <= cutoff, 1 / np.log2(1.0 + ranks), 0.0)


def user_gains(gathered: Gathered, dataset: str, model: str, kd: str, rank: str = "rank") -> np.ndarray | None:
    """Each test row's NDCG@10 with distillation less that without, averaged over the seeds that have both, [N]."""
    gains = []
    for seed in gathered.grid.seeds:
        plain, own = (gathered.ranks(Cell(dataset, model, way, seed)) for way in (BASELINE, kd))
        if plain is not None and own is not None and np.array_equal(plain["item"], own["item"]):
            gains.append(ndcg_of_ranks(own[rank]) - ndcg_of_ranks(plain[rank]))
    return np.mean(gains, axis=0) if gains else None


def interval(gains: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over users, by the bootstrap (percentiles)."""
    if np.ptp(gains) == 0:
        return float(gains.mean()), float(gains.mean())
    found = stats.bootstrap(
        (gains,), np.mean, n_resamples=_RESAMPLES, batch=50, method="percentile", rng=np.random.default_rng(0)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
