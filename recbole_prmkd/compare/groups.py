"""For whom distillation helps: the gain by the length of a user's history and by the popularity of the target."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from recbole_prmkd.compare.gather import Gathered
from recbole_prmkd.compare.grid import BASELINE, Cell
from recbole_prmkd.compare.statistics import ndcg_of_ranks

GROUPS = 4  # of about equally many test rows
BY = {"history": "items in the user's history", "popularity": "training rows of the target"}


def group_bounds(values: np.ndarray, number: int = GROUPS) -> list[tuple[int, int]]:
    """Least and greatest value of each group of about equally many; equal values stay together, in a group of their own
    where they are many."""
    sizes, counts = np.unique(values, return_counts=True)
    bounds: list[tuple[int, int]] = []
    first, inside, left = 0, 0, len(values)
    for place, (count, following) in enumerate(zip(counts, [*counts[1:], 0], strict=True)):
        inside += count
        wanted = left / (number - len(bounds))
        # Ends where the next value would bring it further above what is wanted than it is below.
        if place == len(sizes) - 1 or (len(bounds) < number - 1 and inside + following / 2 >= wanted):
            bounds.append((int(sizes[first]), int(sizes[place])))
            first, inside, left = place + 1, 0, left - inside
    return bounds


def gain_by_group(gathered: Gathered, by: str, rank: str = "rank_unseen") -> pd.DataFrame:
    """Mean NDCG@10 of each group of test rows, with the gain over the student alone.

    Args:
        by: `history` or `popularity`.
        rank: `rank` or `rank_unseen`, in which students of all kinds are ranked alike.
    Returns:
        dataset, model, kd, group (such as `3-5`), rows, ndcg, and gain and its deviation over the seeds.
    """
    frames = [
        frame
        for dataset in gathered.grid.datasets
        for model in gathered.grid.models
        if (frame := _of_model(gathered, dataset, model, by, rank)) is not None
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _of_model(gathered: Gathered, dataset: str, model: str, by: str, rank: str) -> pd.DataFrame | None:
    rows: list[dict[str, object]] = []
    for seed in gathered.grid.seeds:
        plain = gathered.ranks(Cell(dataset, model, BASELINE, seed))
        if plain is None:
            continue
        bounds = group_bounds(plain[by])
        for kd in gathered.grid.kds:
            own = gathered.ranks(Cell(dataset, model, kd, seed))
            if own is not None and np.array_equal(own["item"], plain["item"]):
                rows += _of_cell(bounds, plain[by], ndcg_of_ranks(plain[rank]), ndcg_of_ranks(own[rank]), kd)
    if not rows:
        return None
    grouped = pd.DataFrame(rows).groupby(["kd", "place", "group"], sort=False)
    frame = grouped.agg(
        rows=("rows", "first"), ndcg=("ndcg", "mean"), gain=("gain", "mean"), deviation=("gain", "std")
    ).reset_index()
    return frame.assign(dataset=dataset, model=model).drop(columns="place")


def _of_cell(
    bounds: Sequence[tuple[int, int]], values: np.ndarray, plain: np.ndarray, own: np.ndarray, kd: str
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for place, (low, high) in enumerate(bounds):
        inside = (values >= low) & (values <= high)
        rows.append(
            {
                "kd": kd,
                "place": place,
                "group": str(low) if low == high else f"{low}-{high}",
                "rows": int(inside.sum()),
                "ndcg": float(own[inside].mean()),
                "gain": float((own - plain)[inside].mean()),
            }
        )
    return rows
