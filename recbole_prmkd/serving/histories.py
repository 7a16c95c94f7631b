"""Histories: what users are known to have taken, all parts of the data set together, newest items last."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_prmkd.data.event_order import exact_times


@dataclass(frozen=True)
class Histories:
    """Histories of many users as slices of one flat array: items [M], and where each starts, [users + 1]."""

    items: np.ndarray
    start: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Items of each, [users]."""
        return np.diff(self.start)

    def newest(self, users: np.ndarray, most: int) -> tuple[Tensor, Tensor]:
        """The newest `most` items of each, oldest first, padded with 0 at the end: [B, L] and their number [B]."""
        stop = self.start[users + 1]
        length = np.minimum(stop - self.start[users], most)
        column = np.arange(max(int(length.max(initial=0)), 1))
        place = (stop - length)[:, None] + column  # [B, L]
        inside = column < length[:, None]
        flat = self.items if len(self.items) else np.zeros(1, np.int64)
        found = np.where(inside, flat[np.minimum(place, len(flat) - 1)], 0)
        return torch.from_numpy(found.astype(np.int64)), torch.from_numpy(length.astype(np.int64))

    def pairs(self, users: np.ndarray) -> tuple[Tensor, Tensor]:
        """All items of these histories: the place of the history in `users` [P], and the item [P]."""
        length = self.lengths[users]
        row = np.repeat(np.arange(len(users)), length)
        place = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length) + self.start[users][row]
        return torch.from_numpy(row), torch.from_numpy(self.items[place].astype(np.int64))


def histories_of(sequences: Sequence[Sequence[int]]) -> Histories:
    """Histories from lists of item ids."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    flat = [item for sequence in sequences for item in sequence]
    return Histories(np.array(flat, dtype=np.int64), np.concatenate([[0], np.cumsum(lengths)]))


def known_histories(dataset: Dataset) -> Histories:
    """The whole known history of each user, by internal id; of a data set that is not yet split."""
    frame = dataset.inter_feat
    users, items = frame[dataset.uid_field].to_numpy(), frame[dataset.iid_field].to_numpy()
    given = _given(dataset)
    if given is not None:
        return _from_given(users, items, given, dataset.user_num)
    times = exact_times(dataset)
    order = np.lexsort((times, users)) if times is not None else np.argsort(users, kind="stable")
    counts = np.bincount(users, minlength=dataset.user_num)
    return Histories(_small(items[order], dataset.item_num), np.concatenate([[0], np.cumsum(counts)]))


def _given(dataset: Dataset) -> pd.Series | None:
    """The histories that pre-split files hold, in item ids; None where there are none."""
    field = dataset.iid_field + dataset.config["LIST_SUFFIX"]
    tokens = dataset.field2id_token
    if field not in dataset.inter_feat or field not in tokens:
        return None
    return dataset.inter_feat[field] if np.array_equal(tokens[field], tokens[dataset.iid_field]) else None


def _from_given(users: np.ndarray, items: np.ndarray, given: pd.Series, number: int) -> Histories:
    """Each user's longest history with its target; of equally long ones the last line counts."""
    length = given.map(len).to_numpy()
    order = np.lexsort((np.arange(len(users)), length, users))
    last = order[np.flatnonzero(np.append(users[order][1:] != users[order][:-1], True))] if len(order) else order
    sequences: list[list[int]] = [[] for _ in range(number)]
    for line in last:
        sequences[users[line]] = [*(int(item) for item in given.iloc[line] if item), int(items[line])]
    return histories_of(sequences)


def _small(items: np.ndarray, number: int) -> np.ndarray:
    return items.astype(np.int32 if number < 2**31 else np.int64)
