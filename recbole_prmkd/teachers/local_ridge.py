"""Many small ridge regressions in place of one large one: each target's weights on its own neighbours alone.

A target's neighbours are the items that it occurs with most often, relative to how frequent they are (fsSLIM, ICDM'11,
without its constraints). Time and memory are then linear in the number of items. No regression depends on another: a
few targets can be solved alone, and the threads that torch may use share the work.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

MANY_ITEMS = 50_000
NEIGHBOURS, FEW_NEIGHBOURS = 100, 50  # of a target; where there are more than `MANY_ITEMS`
_BLOCK = 1 << 20  # numbers of small regressions solved at a time, which stay in the CPU's cache
_PLACES = 1 << 24  # items x small regressions at a time
_PAIRS = 1 << 24  # pairs of items that are looked through at a time
_TIE = 1e-14  # of two items that occur with a target equally often, the one with the smaller number is its neighbour


def local_ridge(
    gram: sparse.csr_array, right: sparse.csr_array, penalty: float, targets: np.ndarray | None = None
) -> sparse.csr_array:
    """(gram + penalty I)^-1 right, each column's weights on its own neighbours alone: [n_items, n_items].

    Args:
        gram: symmetric, without an entry for items that occur in nothing.
        right: gram itself for a diagonal of 0.
        targets: columns to solve, those of all items if None; the others are 0.
    """
    by_column = gram if right is gram else right.tocsc()
    diagonal, count = gram.diagonal(), np.diff(by_column.indptr)
    targets = np.arange(len(count)) if targets is None else targets
    targets = targets[count[targets] > 0]
    # Columns with equally many values are solved together, so that little of a block is empty.
    targets = targets[np.argsort(count[targets], kind="stable")].astype(np.int32)
    neighbours = NEIGHBOURS if len(count) <= MANY_ITEMS else min(NEIGHBOURS, FEW_NEIGHBOURS)
    system = _System(*_once(gram), by_column, diagonal, penalty, right is gram, neighbours)
    size = np.zeros(len(count), dtype=np.int64)
    size[targets] = np.minimum(count[targets] - (diagonal[targets] > 0) * (right is gram), neighbours)
    start = bounds(size)
    source, weight = np.zeros(start[-1], dtype=np.int32), np.zeros(start[-1], dtype=np.float32)
    blocks, threads = system.blocks(targets), torch.get_num_threads()

    def solve(thread: int) -> None:
        place = np.zeros(max(_PLACES, len(count)), dtype=np.uint8)
        for columns in blocks[thread::threads]:
            chosen, valid, solved = system.solved(columns, place)
            own = np.repeat(start[columns], valid.sum(1)) + np.nonzero(valid)[1]
            source[own], weight[own] = chosen[valid], solved[valid]

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(solve, range(threads)))
    return sparse.csc_array((weight, source, start), shape=gram.shape).tocsr()


def bounds(size: np.ndarray) -> np.ndarray:
    """Where parts of these sizes [N] start, and where the last one ends [N + 1]: an index pointer of scipy's.

    int32 where that holds the numbers: int64 would make scipy widen all items, and cost half as much memory again.
    """
    stop = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(size, dtype=np.int64)])
    return stop.astype(np.int32) if stop[-1] <= np.iinfo(np.int32).max else stop


def _once(gram: sparse.csr_array) -> tuple[sparse.csr_array, np.ndarray]:
    """Each pair of items once, in the row of the item with fewer pairs, so that no row is long; and the items' ranks.

    The ranks [n_items] go from the fewest to the most pairs.
    """
    n_items, count = gram.shape[0], np.diff(gram.indptr)
    rank = np.empty(n_items, dtype=np.int32)
    rank[np.argsort(count, kind="stable")] = np.arange(n_items, dtype=np.int32)
    items, values, size = [], [], []
    first = 0
    while first < n_items:
        stop = max(first + 1, int(np.searchsorted(gram.indptr, int(gram.indptr[first]) + _PAIRS, side="right")) - 1)
        part = slice(gram.indptr[first], gram.indptr[stop])
        wanted = rank[gram.indices[part]] > np.repeat(rank[first:stop], count[first:stop])
        before = np.concatenate([[0], np.cumsum(wanted)])
        size.append(np.diff(before[gram.indptr[first : stop + 1] - gram.indptr[first]]))
        items.append(gram.indices[part][wanted])
        values.append(gram.data[part][wanted])
        first = stop
    parts = np.concatenate(values), np.concatenate(items), bounds(np.concatenate(size))
    return sparse.csr_array(parts, shape=gram.shape), rank


@dataclass(frozen=True)
class _System:
    """All small regressions, K neighbours each.

    pairs, rank: what `_once` gives. by_column: indptr, indices and data by column; the right-hand sides.
    """

    pairs: sparse.csr_array
    rank: np.ndarray
    by_column: sparse.csr_array
    diagonal: np.ndarray
    penalty: float
    without_itself: bool
    neighbours: int

    def blocks(self, columns: np.ndarray) -> list[np.ndarray]:
        """The columns in parts that fit into the CPU's cache; they come by their numbers of values."""
        count = np.diff(self.by_column.indptr)[columns].astype(np.int64)
        cost = np.maximum(count, np.minimum(count, self.neighbours) ** 2)
        most, first, blocks = max(1, _PLACES // len(self.rank)), 0, []
        while first < len(columns):
            part = cost[first : first + most]
            fitting = np.searchsorted(part * np.arange(1, len(part) + 1), _BLOCK, side="right")
            blocks.append(columns[first : first + max(1, int(fitting))])
            first += len(blocks[-1])
        return blocks

    def solved(self, columns: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Neighbours of these columns, which of them count, and their weights: [b, K] each. place: zeros."""
        chosen, value = self._neighbours(columns)
        order = np.argsort(np.where(chosen >= 0, self.rank[chosen], len(self.rank)), axis=1)
        chosen, value = (np.take_along_axis(part, order, axis=1) for part in (chosen, value))
        valid = chosen >= 0  # [b, K]
        system = self._below_diagonal(chosen, valid, place)  # [b, K, K]
        each = np.arange(chosen.shape[1])
        system[:, each, each] = self.diagonal[chosen] * valid + self.penalty
        factor = torch.linalg.cholesky(torch.from_numpy(system))
        solved = torch.cholesky_solve(torch.from_numpy(value)[..., None], factor)[..., 0]  # [b, K]
        return chosen, valid, solved.numpy()

    def _neighbours(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours [b, K] of these columns, -1 for none, and their values [b, K], 0 for none."""
        indptr, nnz = self.by_column.indptr, self.by_column.nnz
        count = np.diff(indptr)[columns] if len(columns) > 1000 else indptr[columns + 1] - indptr[columns]
        within = np.arange(count.max())  # [W]
        inside = within < count[:, None]  # [b, W]
        place = np.minimum(indptr[columns].astype(np.int64)[:, None] + within, nnz - 1)
        items, value = self.by_column.indices[place], np.where(inside, self.by_column.data[place], 0)
        if self.without_itself:
            inside &= items != columns[:, None]
        norm = np.sqrt(self.diagonal[items] + self.penalty)
        rank = np.where(inside, items * _TIE - value / norm, np.inf)
        kept = slice(None, min(self.neighbours, max(int(inside.sum(1).max()), 1)))
        best = np.argpartition(rank, kept.stop - 1, axis=1)[:, kept]
        inside, items, value = (np.take_along_axis(part, best, axis=1) for part in (inside, items, value))
        return np.where(inside, items, -1), np.where(inside, value, np.float32(0))

    def _below_diagonal(self, chosen: np.ndarray, valid: np.ndarray, place: np.ndarray) -> np.ndarray:
        """What stands below the diagonal of each column's gram matrix, [b, K, K].

        chosen: [b, K] neighbours, in the order in which `pairs` has a pair in the row of the first one.
        """
        n_items, (b, width) = len(self.rank), chosen.shape
        column, first = np.nonzero(valid)
        own = column * n_items + chosen[valid]
        place[own] = first + 1
        rows = self.pairs[chosen[valid]]
        length = np.diff(rows.indptr)
        pair = np.repeat(column * n_items, length)
        pair += rows.indices
        second = place[pair]  # of each pair, from 1; 0: no neighbour
        place[own] = 0
        found = np.flatnonzero(second)
        system = np.zeros((b, width, width), dtype=np.float32)
        start = np.repeat(column * width**2 + first, length)[found]
        system.reshape(-1)[start + width * (second[found].astype(np.int64) - 1)] = rows.data[found]
        return system
