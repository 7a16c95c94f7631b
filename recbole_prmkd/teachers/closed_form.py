"""Linear models of items in closed form: sparse matrices in, item-item weights out.

    EASE (arXiv 1905.03375, eq. 8)   B = I - P diag(P)^-1, P = (X'X + lambda I)^-1   X [users, n_items], 0 or 1
    transitions (SLIT, WWW'21)       R = (H'H + lambda I)^-1 H'Y                     H [N, n_items] decayed histories
                                                                                     Y [N, n_items] targets

A score is a decayed history times B + mix R. Few items are solved densely. Of many, each target has its own small ridge
regression on the `NEIGHBOURS` items that it occurs with most often, relative to how frequent they are (fsSLIM,
ICDM'11, without its constraints); time and memory are then linear in the number of items.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recbole_prmkd.data.examples import Examples

DENSE_ITEMS = 6000  # up to this many items: 150 MB a matrix
NEIGHBOURS = 100
_BLOCK = 1 << 20  # numbers of small regressions solved at a time, which stay in the CPU's cache
_PLACES = 1 << 23  # items x small regressions at a time
_EXAMPLES = 1 << 20  # histories that are collected at a time
_LONGEST = 500  # newest items of a user that count in X: their pairs grow with the square

Matrix = Any  # scipy.sparse.csr_array [n_items, n_items], or a dense np.ndarray


def interactions(examples: Examples, n_items: int) -> sparse.csr_array:
    """X [users, n_items] of the examples: 1 where an item is in a history of the user or is a target."""
    order = torch.from_numpy(np.lexsort((examples.stop.numpy(), examples.start.numpy(), examples.users.numpy())))
    users, start, stop = (part[order] for part in (examples.users, examples.start, examples.stop))
    first = torch.maximum(start, stop - _LONGEST)
    same = (users[1:] == users[:-1]) & (start[1:] == start[:-1])  # as the example before: its items count already
    first[1:] = torch.where(same, torch.maximum(first[1:], stop[:-1]), first[1:])
    lengths = stop - first
    items = examples.items[_slices(first, lengths)]
    users = torch.cat([users.repeat_interleave(lengths), examples.users])
    pairs = np.unique((users * n_items + torch.cat([items, examples.targets])).numpy())
    n_users = int(examples.users.max()) + 1 if len(examples) else 1
    ones = np.ones(len(pairs), dtype=np.float32)
    return sparse.csr_array((ones, (pairs // n_items, pairs % n_items)), shape=(n_users, n_items))


def histories(examples: Examples, numbers: Tensor, n_items: int, decay: float, newest: int) -> sparse.csr_array:
    """H [B, n_items]: decay ** age of each item of a history, 1 for the last one; repeats add up.

    numbers: [B] of the examples. newest: items of a history that count.
    """
    items, lengths = _newest(examples, numbers, newest)
    stop = lengths.cumsum(0)
    age = stop.repeat_interleave(lengths) - 1 - torch.arange(len(items))
    values = (decay ** age.double()).float().numpy()
    bounds = torch.cat([torch.zeros(1, dtype=torch.int64), stop]).numpy()
    return sparse.csr_array((values, items.numpy(), bounds), shape=(len(numbers), n_items))


def _newest(examples: Examples, numbers: Tensor, newest: int) -> tuple[Tensor, Tensor]:
    """The newest items of these histories, one history after the other [M], and how many of each [B]."""
    stop = examples.stop[numbers]
    lengths = (stop - examples.start[numbers]).clamp(max=newest)  # [B]
    return examples.items[_slices(stop - lengths, lengths)], lengths


def _slices(first: Tensor, lengths: Tensor) -> Tensor:
    """first[0], first[0] + 1, ..., lengths[0] numbers; then those of first[1], and so on: [sum of lengths]."""
    return torch.arange(int(lengths.sum())) + (first - lengths.cumsum(0) + lengths).repeat_interleave(lengths)


def transitions(
    examples: Examples, n_items: int, decay: float, newest: int
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """H'H and H'Y of all examples, [n_items, n_items] both."""
    blocks = torch.arange(len(examples)).split(_EXAMPLES)
    parts = [histories(examples, numbers, n_items, decay, newest) for numbers in blocks]
    history = parts[0] if len(parts) == 1 else sparse.vstack(parts, format="csr")
    del parts
    ones, rows = np.ones(len(examples), dtype=np.float32), np.arange(len(examples))
    target = sparse.csr_array((ones, (rows, examples.targets.numpy())), shape=history.shape)
    by_item = history.T.tocsr()
    return by_item @ history, by_item @ target


def ease(gram: sparse.csr_array, penalty: float) -> Matrix:
    """B from X'X; its diagonal is 0."""
    if gram.shape[0] > DENSE_ITEMS:
        return _local_ridge(gram, gram, penalty)
    inverse = torch.cholesky_inverse(_factor(gram, penalty))
    weights = inverse.div_(-inverse.diagonal().clone()).numpy()
    np.fill_diagonal(weights, 0)
    return weights


def ridge(gram: sparse.csr_array, right: sparse.csr_array, penalty: float) -> Matrix:
    """(gram + penalty I)^-1 right."""
    if gram.shape[0] > DENSE_ITEMS:
        return _local_ridge(gram, right, penalty)
    return torch.cholesky_solve(torch.from_numpy(right.toarray()), _factor(gram, penalty)).numpy()


def _factor(gram: sparse.csr_array, penalty: float) -> Tensor:
    dense = torch.from_numpy(gram.toarray())
    dense.diagonal().add_(penalty)
    return torch.linalg.cholesky(dense)


def _local_ridge(gram: sparse.csr_array, right: sparse.csr_array, penalty: float) -> sparse.csr_array:
    """The same with each column's weights on its own neighbours alone; right: gram itself for a diagonal of 0.

    Each pair of items is kept in the row of the item with fewer pairs, so that no row is long.
    """
    n_items, diagonal = gram.shape[0], gram.diagonal()
    rank = np.empty(n_items, dtype=np.int32)
    rank[np.argsort(np.diff(gram.indptr), kind="stable")] = np.arange(n_items, dtype=np.int32)
    pairs = _where(gram, rank[gram.indices] > np.repeat(rank, np.diff(gram.indptr)))
    by_column = gram if right is gram else right.tocsc()  # a gram matrix is symmetric
    place = np.zeros(max(_PLACES, n_items), dtype=np.uint8)  # of the items of several columns, from 1
    sources, targets, weights = [], [], []
    for columns, chosen, value in _neighbours(by_column, np.sqrt(diagonal + penalty), right is gram):
        order = np.argsort(np.where(chosen >= 0, rank[chosen], n_items), axis=1)
        chosen, value = (np.take_along_axis(part, order, axis=1) for part in (chosen, value))
        valid = chosen >= 0  # [b, K]
        system = _systems(pairs, chosen, valid, place)  # [b, K, K]
        each = np.arange(chosen.shape[1])
        system[:, each, each] = diagonal[chosen] * valid + penalty
        factor = torch.linalg.cholesky(torch.from_numpy(system))
        solved = torch.cholesky_solve(torch.from_numpy(value)[..., None], factor)[..., 0].numpy()  # [b, K]
        sources.append(chosen[valid])
        targets.append(np.repeat(columns, valid.sum(1)))
        weights.append(solved[valid])
    where = (np.concatenate(sources), np.concatenate(targets))
    return sparse.csr_array((np.concatenate(weights), where), shape=(n_items, n_items))


def _where(matrix: sparse.csr_array, wanted: np.ndarray) -> sparse.csr_array:
    """These entries of a matrix alone; wanted: [nnz]."""
    before = np.concatenate([[0], np.cumsum(wanted)])
    return sparse.csr_array((matrix.data[wanted], matrix.indices[wanted], before[matrix.indptr]), shape=matrix.shape)


def _systems(pairs: sparse.csr_array, chosen: np.ndarray, valid: np.ndarray, place: np.ndarray) -> np.ndarray:
    """What stands below the diagonal of each column's gram matrix, [b, K, K].

    chosen: [b, K] neighbours, in the order in which `pairs` has a pair in the row of the first one. place: zeros.
    """
    n_items, (b, width) = pairs.shape[0], chosen.shape
    column, first = np.nonzero(valid)
    own = column * n_items + chosen[valid]
    place[own] = first + 1
    rows = pairs[chosen[valid]]
    length = np.diff(rows.indptr)
    second = place[np.repeat(column * n_items, length) + rows.indices]  # of each pair, from 1; 0: no neighbour
    place[own] = 0
    found = np.flatnonzero(second)
    system = np.zeros((b, width, width), dtype=np.float32)
    start = np.repeat(column * width**2 + first, length)[found]
    system.reshape(-1)[start + width * (second[found].astype(np.int64) - 1)] = rows.data[found]
    return system


def _neighbours(
    by_column: Matrix, norm: np.ndarray, without_itself: bool
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of columns [b], their neighbours [b, K], -1 for none, and their values [b, K], 0 for none.

    by_column: indptr, indices and data by column. norm: [n_items]; the largest value / norm are neighbours.
    Columns with equally many values come together, so that little of a block is empty.
    """
    count = np.diff(by_column.indptr)
    order = np.argsort(count, kind="stable").astype(np.int32)
    first, most = int(np.searchsorted(count[order], 1)), max(1, _PLACES // len(order))
    while first < len(order):
        columns = order[first : first + most]
        columns = columns[: _fitting(count[columns])]
        first += len(columns)
        within = np.arange(count[columns[-1]])  # [W]
        inside = within < count[columns][:, None]  # [b, W]
        place = np.minimum(by_column.indptr[columns][:, None] + within, by_column.nnz - 1)
        items, value = by_column.indices[place], np.where(inside, by_column.data[place], 0)
        if without_itself:
            inside &= items != columns[:, None]
        rank = np.where(inside, -value / norm[items], np.inf)
        kept = slice(None, min(NEIGHBOURS, max(int(inside.sum(1).max()), 1)))
        best = np.argpartition(rank, kept.stop - 1, axis=1)[:, kept]
        inside, items, value = (np.take_along_axis(part, best, axis=1) for part in (inside, items, value))
        yield columns, np.where(inside, items, -1), np.where(inside, value, np.float32(0))


def _fitting(count: np.ndarray) -> int:
    """How many of the columns with these ascending numbers of values fit into the CPU's cache."""
    cost = np.maximum(count, np.minimum(count, NEIGHBOURS).astype(np.int64) ** 2) * np.arange(1, len(count) + 1)
    return max(1, int(np.searchsorted(cost, _BLOCK, side="right")))


def largest(weights: Matrix, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest weights of each row by size, and their columns: [n_items, number] float32 and int32, 0 for none."""
    n_items = weights.shape[0]
    columns = np.zeros((n_items, number), dtype=np.int32)
    values = np.zeros((n_items, number), dtype=np.float32)
    for row in range(n_items):
        if sparse.issparse(weights):
            part = slice(weights.indptr[row], weights.indptr[row + 1])
            index, value = weights.indices[part], weights.data[part]
        else:
            value, index = weights[row], np.arange(n_items)
        if len(value) > number:
            best = np.argpartition(-np.abs(value), number)[:number]
            index, value = index[best], value[best]
        columns[row, : len(index)], values[row, : len(index)] = index, value
    return values, columns


def trimmed(weights: sparse.csr_array, number: int) -> sparse.csr_array:
    """The largest weights of each row alone."""
    values, columns = largest(weights, number)
    bounds = np.arange(0, values.size + 1, number)
    kept = sparse.csr_array((values.ravel(), columns.ravel(), bounds), shape=weights.shape)
    kept.eliminate_zeros()
    return kept
