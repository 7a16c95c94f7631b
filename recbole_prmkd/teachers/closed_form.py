"""Linear models of items in closed form: sparse matrices in, item-item weights out.

    EASE (arXiv 1905.03375, eq. 8)   B = I - P diag(P)^-1, P = (X'X + lambda I)^-1   X [users, n_items], 0 or 1
    transitions (SLIT, WWW'21)       R = (H'H + lambda I)^-1 H'Y                     H [N, n_items] decayed histories
                                                                                     Y [N, n_items] targets

A score is a decayed history times B + mix R. Few items are solved densely, many by a small regression of each target
(`local_ridge`).
"""

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.teachers.local_ridge import bounds, local_ridge

DENSE_ITEMS = 6000  # up to this many items: 150 MB a matrix
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
    where = tuple(part.astype(np.int32) for part in np.divmod(pairs, n_items))  # wider numbers would widen all products
    return sparse.csr_array((ones, where), shape=(n_users, n_items))


def histories(examples: Examples, numbers: Tensor, n_items: int, decay: float, newest: int) -> sparse.csr_array:
    """H [B, n_items]: decay ** age of each item of a history, 1 for the last one; repeats add up.

    numbers: [B] of the examples. newest: items of a history that count.
    """
    items, lengths = _newest(examples, numbers, newest)
    stop = lengths.cumsum(0)
    age = stop.repeat_interleave(lengths) - 1 - torch.arange(len(items))
    values = (decay ** age.double()).float().numpy()
    return sparse.csr_array((values, items.int().numpy(), bounds(lengths.numpy())), shape=(len(numbers), n_items))


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
    ones, rows = np.ones(len(examples), dtype=np.float32), np.arange(len(examples), dtype=np.int32)
    target = sparse.csr_array((ones, (rows, examples.targets.int().numpy())), shape=history.shape)
    by_item = history.T.tocsr()
    return by_item @ history, by_item @ target


def ease(gram: sparse.csr_array, penalty: float, targets: np.ndarray | None = None) -> Matrix:
    """B from X'X; its diagonal is 0. targets: of many items, the columns to solve alone."""
    if gram.shape[0] > DENSE_ITEMS:
        return local_ridge(gram, gram, penalty, targets)
    inverse = torch.cholesky_inverse(_factor(gram, penalty))
    weights = np.ascontiguousarray(inverse.div_(-inverse.diagonal().clone()).numpy())  # else each product copies it
    np.fill_diagonal(weights, 0)
    return weights


def ridge(gram: sparse.csr_array, right: sparse.csr_array, penalty: float, targets: np.ndarray | None = None) -> Matrix:
    """(gram + penalty I)^-1 right. targets: of many items, the columns to solve alone."""
    if gram.shape[0] > DENSE_ITEMS:
        return local_ridge(gram, right, penalty, targets)
    inverse = torch.cholesky_inverse(_factor(gram, penalty)).numpy()  # symmetric; a third of the work of a solve
    return np.ascontiguousarray((right.T.tocsr() @ inverse).T)


def _factor(gram: sparse.csr_array, penalty: float) -> Tensor:
    dense = torch.from_numpy(gram.toarray())
    dense.diagonal().add_(penalty)
    return torch.linalg.cholesky(dense)


def largest(weights: Matrix, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest weights of each row by size, and their columns: [n_items, number] float32 and int32, 0 for none."""
    n_items = weights.shape[0]
    columns = np.zeros((n_items, number), dtype=np.int32)
    values = np.zeros((n_items, number), dtype=np.float32)
    if sparse.issparse(weights):
        kept = trimmed(weights, number)
        own = np.arange(number) < np.diff(kept.indptr)[:, None]  # [n_items, number]
        columns[own], values[own] = kept.indices, kept.data
        return values, columns
    for row in range(n_items):
        value = weights[row]
        best = np.arange(n_items)
        if n_items > number:
            best = np.argpartition(-np.abs(value), number)[:number]
        columns[row, : len(best)], values[row, : len(best)] = best, value[best]
    return values, columns


def trimmed(weights: sparse.csr_array, number: int) -> sparse.csr_array:
    """The largest weights of each row alone."""
    count, wanted = np.diff(weights.indptr), np.ones(weights.nnz, dtype=bool)
    for row in np.flatnonzero(count > number):
        part = slice(weights.indptr[row], weights.indptr[row + 1])
        least = np.argpartition(-np.abs(weights.data[part]), number)[number:]
        wanted[part][least] = False
    kept = weights.data[wanted], weights.indices[wanted], bounds(np.minimum(count, number))
    return sparse.csr_array(kept, shape=weights.shape)
