"""The scores of training examples that a linear model leaves to be stored: the largest, and one for all other items.

Of few items a row of scores is dense. Of many only the items that follow an item of the history have a score above the
floor, so that the work grows with these and not with the number of items. Both give the same soft targets.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

SCORES = 1 << 24  # scored at a time
_ROWS = 2048  # of sparse scores at a time: each has up to a few thousand
_CACHED = 1 << 19  # numbers that stay in the CPU's cache


class Floor(NamedTuple):
    """score(c) = log(floor + relative(c)); the temperature divides it in the soft targets."""

    floor: float
    temperature: float

    def weight(self, relative: Tensor) -> Tensor:
        """exp(score / temperature)."""
        return (relative + self.floor) ** (1 / self.temperature)

    def of_rest(self, weight: Tensor, count: Tensor, smallest: Tensor) -> Tensor:
        """One score for `count` items with this summed weight [B]; the smallest stored one where there are none."""
        mean = self.temperature * (weight.log() - count.clamp(min=1).log())
        return torch.where(count > 0, mean, smallest)


Kept = tuple[Tensor, Tensor, Tensor]  # items [B, M] int32, scores [B, M] float16, score of the rest [B]


def relative_to_best(raw: Tensor, item_seq: Tensor) -> Tensor:
    """Scores above 0, relative to the largest one outside the history [B, n_items]; all 0 where there is none.

    item_seq: [B, L], 0 for PAD.
    """
    raw = raw.clamp(min=0)
    top = raw.scatter(1, item_seq, 0).amax(1, keepdim=True)  # [B, 1]
    return torch.where(top > 0, raw / top, 0)


def of_dense(raw: Tensor, item_seq: Tensor, known: Tensor, number: int, scale: Floor) -> Kept:
    """The largest of these raw scores [B, n_items]; known: [n_items] covered items, no other is kept or counts."""
    relative = relative_to_best(raw, item_seq)
    says = relative.amax(1) > 0  # [B]
    value, item = relative.masked_fill_(~known, -1).topk(number, dim=1)  # [B, M]
    left = scale.weight(relative.clamp_(min=0)).scatter_(1, item, 0) @ known.float()
    count = known.sum() - (value >= 0).sum(1)
    return _sorted(item, value, left, count, says, scale)


def of_sparse(
    raw: sparse.csr_array, item_seq: Tensor, known: Tensor, number: int, scale: Floor
) -> Iterator[tuple[Tensor, Kept]]:
    """The same of sparse raw scores, which only covered items have: numbers [b] of examples and what is kept of them.

    0 in place of an item: none.
    """
    covered = known.sum()
    for index, item, value in blocks(raw, max(number, item_seq.shape[1] + 1)):
        value.clamp_(min=0)
        # One of so many is outside the history: only among these is looked for the items of the history.
        best, column = value.topk(max(number, item_seq.shape[1] + 1), dim=1)
        had = is_in(item.gather(1, column), item_seq[index])
        top = best.masked_fill(had, 0).amax(1, keepdim=True)  # [b, 1]
        column = column[:, :number]  # [b, M]
        relative = torch.where(top > 0, value / top, 0)  # [b, W]
        value = relative.gather(1, column)  # [b, M]
        left = scale.weight(relative).masked_fill_(relative == 0, 0).scatter_(1, column, 0).sum(1)
        count = covered - (value > 0).sum(1)
        floors = covered - (relative > 0).sum(1)  # items that have no score above the floor
        left = left + floors * scale.weight(torch.zeros(()))
        item = item.gather(1, column).masked_fill_(value == 0, 0)
        value = value.masked_fill(value == 0, -1)
        yield index, _sorted(item, value, left, count, top.squeeze(1) > 0, scale)


def blocks(raw: sparse.csr_array, width: int = 1) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Numbers of rows [b], their items and values beside each other, [b, W] both, 0 for none; W is at least `width`.

    Rows with equally many values come together, as many as stay in the CPU's cache.
    """
    count, first = np.diff(raw.indptr), 0
    order = np.argsort(count, kind="stable")
    while first < len(order):
        most = np.maximum(count[order[first:]], width) * np.arange(1, len(order) - first + 1)
        rows = order[first : first + max(1, int(np.searchsorted(most, _CACHED, side="right")))]
        first += len(rows)
        within = np.arange(max(int(count[rows[-1]]), width))  # [W]
        inside = within < count[rows][:, None]  # [b, W]
        part = raw[rows]
        item, value = np.zeros(inside.shape, part.indices.dtype), np.zeros(inside.shape, part.dtype)
        item[inside], value[inside] = part.indices, part.data
        yield torch.from_numpy(rows), torch.from_numpy(item), torch.from_numpy(value)


def is_in(item: Tensor, item_seq: Tensor) -> Tensor:
    """Which items [B, W] are in their row of item_seq [B, L]."""
    had = item_seq.to(item.dtype).sort(dim=1).values
    position = torch.searchsorted(had, item).clamp_(max=had.shape[1] - 1)
    return had.gather(1, position) == item


def rows_at_a_time(n_items: int, dense: bool) -> int:
    """How many examples are scored at a time."""
    return max(1, SCORES // n_items) if dense else _ROWS


def _sorted(item: Tensor, value: Tensor, left: Tensor, count: Tensor, says: Tensor, scale: Floor) -> Kept:
    """By ascending item; value: relative, below 0 for none. says: [B] whether the model covers the example."""
    score = (value + scale.floor).log().masked_fill_(value < 0, torch.nan)  # [B, M]
    rest = scale.of_rest(left, count, score.nan_to_num(nan=torch.inf).amin(1))
    item, order = item.sort(dim=1)
    score = score.gather(1, order).masked_fill_(~says[:, None], torch.nan)
    return item.int(), score.half(), rest.masked_fill(~says, torch.nan)
