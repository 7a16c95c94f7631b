"""Mean and deviation over seeds, and whether a KD method differs from the student alone.

For each data set, student, metric and KD method the pairs are the seeds, each with and without distillation:

- two-sided paired t-test, from three seeds on
- Holm's correction over all comparisons of one data set
- effect size Cohen's d_z: mean of the differences over their standard deviation
- a star where the corrected p is below .05 and the mean is better, a dagger where it is worse
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from recbole.evaluator.register import smaller_metrics
from scipy import stats

from recbole_prmkd.compare.gather import TEACHER, Gathered
from recbole_prmkd.compare.grid import BASELINE

FEWEST_SEEDS, LEVEL = 3, 0.05
BETTER, WORSE = "*", "†"


@dataclass(frozen=True)
class Paired:
    """A paired test. p and effect are NaN where `reason` says that there is no test."""

    paired_seeds: int
    gain: float  # mean difference
    p: float = math.nan
    effect: float = math.nan
    reason: str = ""


def paired(plain: Sequence[float], distilled: Sequence[float]) -> Paired:
    """Test the differences of two lists whose positions are the same seeds."""
    differences = np.asarray(distilled, dtype=float) - np.asarray(plain, dtype=float)
    number = len(differences)
    gain = float(differences.mean()) if number else math.nan
    if number < FEWEST_SEEDS:
        return Paired(number, gain, reason=f"a test needs {FEWEST_SEEDS} seeds")
    # Metrics are rounded to four digits, so a few seeds may differ by the very same amount.
    if np.ptp(differences) < 1e-12:
        return Paired(number, gain, reason="the differences do not vary")
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
    """One row per data set, student, KD method and metric.

    Args:
        columns: of `gathered.cells`, such as `test ndcg@10`.
    Returns:
        dataset, model, kd, metric, seeds, mean, deviation (ddof 1), and against the student alone: paired_seeds, whole
        (whether these are all seeds of both), gain, percent, p, effect, reason, p_holm, mark. Teachers have mean alone.
        With kd_guard also replaced: in how many seeds it kept another student than the distilled one.
    """
    rows = []
    cells = gathered.cells
    for (dataset, model), student in cells.groupby(["dataset", "model"], sort=False) if len(cells) else []:
        by_seed = student.set_index("seed")
        for kd in (*gathered.grid.kds, TEACHER):
            own = by_seed[by_seed["kd"] == kd]
            plain = by_seed[by_seed["kd"] == (None if kd in (BASELINE, TEACHER) else BASELINE)]
            names = {"dataset": dataset, "model": model, "kd": kd}
            if "kept" in own:
                names["replaced"] = int((own["kept"].notna() & (own["kept"] != kd)).sum())
            rows += [
                names | {"metric": metric} | _row(own[metric].dropna(), plain[metric].dropna())
                for metric in (columns if len(own) else [])
            ]
    return _with_marks(pd.DataFrame(rows)) if rows else pd.DataFrame()


def falls(metric: str) -> bool:
    """Whether less of this metric is better: `test rmse`, `averagepopularity@10`."""
    return metric.split(" ")[-1].partition("@")[0] in smaller_metrics


def _row(own: pd.Series, plain: pd.Series) -> dict[str, object]:
    shared = own.index.intersection(plain.index, sort=False)
    test = paired(plain[shared].tolist(), own[shared].tolist())
    base = float(plain[shared].mean())
    return {
        "seeds": len(own),
        "mean": float(own.mean()),
        "deviation": float(own.std(ddof=1)),
        "whole": len(shared) == len(own) == len(plain),
        **vars(test),
        "percent": 100 * test.gain / base if base else math.nan,
    }


def _with_marks(frame: pd.DataFrame) -> pd.DataFrame:
    """With the corrected p and the mark that each comparison has earned.

    RecBole ranks some students on unseen items anyway; their two equal comparisons count once.
    """
    frame["p_holm"] = np.nan
    for _, table in frame[frame["p"].notna()].groupby("dataset"):
        same = [table["model"], table["kd"], table["metric"].str.replace(" unseen", ""), table["gain"], table["p"]]
        number = table.groupby(same, sort=False).ngroup()  # of the comparison
        frame.loc[table.index, "p_holm"] = np.array(holm(table["p"].groupby(number).first().tolist()))[number]
    better = (frame["gain"] > 0) != frame["metric"].map(falls)
    frame["mark"] = np.where(frame["p_holm"] < LEVEL, np.where(better, BETTER, WORSE), "")
    return frame
