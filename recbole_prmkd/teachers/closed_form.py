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
_COLUMNS = 256  # small regressions solved at a time
_LONGEST = 500  # newest items of a user that count in X: their pairs grow with the square

Matrix = Any  # scipy.sparse.csr_array [n_items, n_items], or a dense np.ndarray


def interactions(examples: Examples, n_items: int) -> sparse.csr_array:
    """X [users, n_items] of the examples: 1 where an item is in a history of the user or is a target."""
    numbers = torch.arange(len(examples))
    items, lengths = _newest(examples, numbers, _LONGEST)
    users = torch.cat([examples.users.repeat_interleave(lengths), examples.users])
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
    within = torch.arange(int(lengths.sum())) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return examples.items[(stop - lengths).repeat_interleave(lengths) + within], lengths


def transitions(
    examples: Examples, n_items: int, decay: float, newest: int
) -> tuple[sparse.csr_array, sparse.csr_array]:
    """H'H and H'Y of all examples, [n_items, n_items] both."""
    numbers = torch.arange(len(examples))
    history = histories(examples, numbers, n_items, decay, newest)
    ones, rows = np.ones(len(examples), dtype=np.float32), np.arange(len(examples))
    target = sparse.csr_array((ones, (rows, examples.targets.numpy())), shape=history.shape)
    return (history.T @ history).tocsr(), (history.T @ target).tocsr()


def ease(gram: sparse.csr_array, penalty: float) -> Matrix:
    """B from X'X; its diagonal is 0."""
    if gram.shape[0] > DENSE_ITEMS:
        right = gram - sparse.diags_array(gram.diagonal(), format="csr")
        return _local_ridge(gram, right, penalty)
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
    """The same with each column's weights on its own neighbours alone."""
    n_items = gram.shape[0]
    sources, targets, weights = [], [], []
    for columns, chosen, valid, values in _neighbours(gram, right, penalty):
        block = np.zeros((*chosen.shape, chosen.shape[1]), dtype=np.float32)  # [b, K, K]
        for one, of_one, inside in zip(block, chosen, valid, strict=True):
            own = of_one[inside]
            one[: len(own), : len(own)] = gram[own][:, own].toarray()
        system = torch.from_numpy(block)
        system.diagonal(dim1=1, dim2=2).add_(penalty)
        solved = torch.cholesky_solve(torch.from_numpy(values)[..., None], torch.linalg.cholesky(system))[
            ..., 0
        ].numpy()
        sources.append(chosen[valid])
        targets.append(np.repeat(columns, valid.sum(1)))
        weights.append(solved[valid])
    where = (np.concatenate(sources), np.concatenate(targets))
    return sparse.csr_array((np.concatenate(weights), where), shape=(n_items, n_items))


def _neighbours(
    gram: sparse.csr_array, right: sparse.csr_array, penalty: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks of columns [b], their neighbours [b, K], which of these count, and their values in `right`."""
    norm = np.sqrt(gram.diagonal() + penalty)
    by_column = right.tocsc()
    for first in range(0, gram.shape[0], _COLUMNS):
        columns = np.arange(first, min(first + _COLUMNS, gram.shape[0]))
        chosen = np.zeros((len(columns), NEIGHBOURS), dtype=np.int64)
        values = np.zeros((len(columns), NEIGHBOURS), dtype=np.float32)
        count = np.zeros(len(columns), dtype=np.int64)
        for n, column in enumerate(columns):
            part = slice(by_column.indptr[column], by_column.indptr[column + 1])
            items, value = by_column.indices[part], by_column.data[part]
            if len(items) > NEIGHBOURS:
                best = np.argpartition(-value / norm[items], NEIGHBOURS)[:NEIGHBOURS]
                items, value = items[best], value[best]
            count[n] = len(items)
            chosen[n, : len(items)], values[n, : len(items)] = items, value
        width = max(int(count.max()), 1)
        yield columns, chosen[:, :width], np.arange(width) < count[:, None], values[:, :width]


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
