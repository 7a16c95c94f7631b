"""The data of a run: RecBole's own data set and split, and the same split as rows of user histories.

A row is (user, history, target). A sequential student's batches hold its history; other students' batches do
not, so it is rebuilt here from the training split, only items before the row. All of a user's histories are
slices of one flat array, never one padded list per row:

    items   7 3 9 4 | 5 7 2        two users' training items, oldest first
    row 0   start 0 stop 1         history 7        target items[1] = 3
    row 2   start 0 stop 3         history 7 3 9    target items[3] = 4
    row 3   start 4 stop 5         history 5        target items[5] = 7
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from torch import Tensor

from recbole_prmkd.artifacts import digest
from recbole_prmkd.errors import UserError

ROW = "kd_row"  # field that carries the row's number in a training batch


@dataclass(frozen=True)
class Rows:
    """N rows (user, history, target); histories are slices of `items`.

    users, targets, start, stop: [N] int64; items: [M] int64, users' items oldest first.
    """

    users: Tensor
    targets: Tensor
    start: Tensor
    stop: Tensor
    items: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> Tensor:
        """Items before each row, [N]."""
        return self.stop - self.start

    def select(self, index: Tensor) -> "Rows":
        """The rows of these numbers."""
        return Rows(self.users[index], self.targets[index], self.start[index], self.stop[index], self.items)

    def histories(self, index: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """The newest `longest` items before each row, oldest first, right-padded with 0.

        Returns:
            item_seq [B, L] with L the batch's longest (at least 1), and item_seq_len [B].
        """
        stop = self.stop[index]
        length = (stop - self.start[index]).clamp(max=longest)  # [B]
        columns = torch.arange(max(int(length.max()) if len(length) else 1, 1))
        position = (stop - length)[:, None] + columns  # [B, L]
        inside = columns < length[:, None]
        items = self.items[position.clamp(max=max(len(self.items) - 1, 0))]
        return torch.where(inside, items, 0), length

    def history_pairs(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """All items before each row without padding, P in all: place in `index` [P] and item [P]."""
        start = self.start[index]  # [B]
        length = self.stop[index] - start
        first = length.cumsum(0) - length  # [B] where each row's items start among the P
        place = torch.arange(len(index)).repeat_interleave(length)  # [P]
        position = torch.arange(len(place)) + (start - first)[place]
        return place, self.items[position]

    def renumbered(self, new_id: Tensor) -> "Rows":
        """The same rows in another item numbering; new_id [n_items]: old id -> new id, 0 -> 0."""
        return Rows(self.users, new_id[self.targets], self.start, self.stop, new_id[self.items])

    @staticmethod
    def joined(parts: Sequence["Rows"], users: Sequence[int], items: Sequence[int]) -> "Rows":
        """The rows of several data sets as those of one.

        Args:
            users, items: what to add to each part's user and item ids (to an id of 0, nothing).
        """

        def shifted(ids: Tensor, by: int) -> Tensor:
            return torch.where(ids > 0, ids + by, 0)

        before = [0, *itertools.accumulate(len(part.items) for part in parts)]
        return Rows(
            users=torch.cat([shifted(part.users, by) for part, by in zip(parts, users, strict=True)]),
            targets=torch.cat([shifted(part.targets, by) for part, by in zip(parts, items, strict=True)]),
            start=torch.cat([part.start + n for part, n in zip(parts, before, strict=False)]),
            stop=torch.cat([part.stop + n for part, n in zip(parts, before, strict=False)]),
            items=torch.cat([shifted(part.items, by) for part, by in zip(parts, items, strict=True)]),
        )

    def compact(self) -> "Rows":
        """The same rows over a flat array that holds their histories alone, users in the order of the rows."""
        block, inverse = torch.unique(self.start, return_inverse=True)
        size = torch.zeros_like(block).scatter_reduce(0, inverse, self.lengths, "amax")
        seen = torch.full_like(block, len(self)).scatter_reduce(0, inverse, torch.arange(len(self)), "amin")
        order = torch.argsort(seen)  # blocks by their first row
        size = size[order]
        new_start = torch.empty_like(block)
        new_start[order] = size.cumsum(0) - size
        within = torch.arange(int(size.sum())) - (size.cumsum(0) - size).repeat_interleave(size)
        items = self.items[block[order].repeat_interleave(size) + within]
        start = new_start[inverse]
        return Rows(self.users, self.targets, start, start + self.lengths, items)

    def digest(self) -> str:
        """Hash of all targets and histories, in this item numbering and row order; user ids do not count."""
        rows = self.compact()
        return digest([rows.targets, rows.start, rows.stop, rows.items])


@dataclass(frozen=True)
class Split:
    """A student's data: RecBole's three loaders, and the same three parts as rows in internal item ids.

    later: the training rows with the user's training items after the row in place of the history.
    """

    dataset: Dataset
    train_data: AbstractDataLoader
    valid_data: AbstractDataLoader
    test_data: AbstractDataLoader
    train: Rows
    later: Rows
    valid: Rows
    test: Rows
    item_tokens: list[str]  # by internal id, from 1
    user_tokens: list[str]


def load_split(config: Config) -> Split:
    """Read and split the data set with RecBole's own code, in RecBole's own order of calls.

    Adds one column, the row's number, to the training interactions; the student does not see it. Says how
    many lines of the file did not become interactions.
    """
    with _counting_loaded_rows() as loaded:
        dataset = create_dataset(config)
    getLogger().info(dataset)
    _report_lost_rows(config, dataset, loaded)
    train_data, valid_data, test_data = data_preparation(config, dataset)
    parts = {"training": train_data, "validation": valid_data, "test": test_data}
    for name, part in parts.items():
        if len(part._dataset.inter_feat) == 0:
            raise UserError(f"The {name} split is empty: lower the filters, or change the split in eval_args.")
    train = train_data._dataset.inter_feat
    rows, sequences = _train_rows(train_data._dataset)
    train.interaction[ROW] = torch.arange(len(train))
    valid = _evaluation_rows(valid_data._dataset, sequences)
    test = _evaluation_rows(test_data._dataset, sequences.followed_by(valid.users, valid.targets))
    for part in (dataset, *(loader._dataset for loader in parts.values())):
        _cut_histories(part)
    getLogger().info(f"Rows: {len(rows)} for training, {len(valid)} for validation, {len(test)} for test.")
    return Split(
        dataset=dataset,
        train_data=train_data,
        valid_data=valid_data,
        test_data=test_data,
        train=rows,
        later=_later(rows, sequences),
        valid=valid,
        test=test,
        item_tokens=[str(token) for token in dataset.field2id_token[dataset.iid_field][1:]],
        user_tokens=[str(token) for token in dataset.field2id_token[dataset.uid_field][1:]],
    )


@dataclass(frozen=True)
class _Sequences:
    """All users' items in time order: users [M] ascending, items [M]."""

    users: Tensor
    items: Tensor

    def rows(self, users: Tensor, targets: Tensor) -> Rows:
        """Rows whose history is the user's whole sequence."""
        start = torch.searchsorted(self.users, users)
        stop = torch.searchsorted(self.users, users, right=True)
        return Rows(users, targets, start, stop, self.items)

    def followed_by(self, users: Tensor, items: Tensor) -> "_Sequences":
        """The sequences with these items at their ends."""
        users, items = torch.cat([self.users, users]), torch.cat([self.items, items])
        order = torch.argsort(users, stable=True)
        return _Sequences(users[order], items[order])


def _train_rows(train: Dataset) -> tuple[Rows, _Sequences]:
    """RecBole's training rows in RecBole's order, and the users' training sequences."""
    users, targets = train.inter_feat[train.uid_field], train.inter_feat[train.iid_field]
    order = torch.argsort(users, stable=True)  # RecBole keeps each user's rows in time order
    given = _given_histories(train)
    if given is None:
        sequences = _Sequences(users[order], targets[order])
        stop = torch.empty_like(order)
        stop[order] = torch.arange(len(order))
        return Rows(users, targets, torch.searchsorted(sequences.users, users), stop, sequences.items), sequences
    # A sequential data set: a user's first row holds the items before it, every row adds its target.
    histories, lengths = given
    sorted_users = users[order]
    first = order[torch.searchsorted(sorted_users, torch.unique(sorted_users))]  # [users]
    inside = torch.arange(histories.shape[1]) < lengths[first][:, None]
    before = _Sequences(users[first].repeat_interleave(lengths[first]), histories[first][inside])
    sequences = before.followed_by(sorted_users, targets[order])
    start = torch.searchsorted(sequences.users, users)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - torch.searchsorted(sorted_users, sorted_users)
    first_length = torch.zeros(int(users.max()) + 1, dtype=torch.int64)
    first_length[users[first]] = lengths[first]
    rows = Rows(users, targets, start, start + first_length[users] + rank, sequences.items)
    return (rows if _agree(rows, given) else _as_given(users, targets, given)), sequences


def _later(rows: Rows, sequences: _Sequences) -> Rows:
    """The training rows with what the user did after them, inside the training split, as history."""
    whole = sequences.rows(rows.users, rows.targets)
    if rows.items is not sequences.items:  # rows as given do not say where they stand in the sequence
        return Rows(rows.users, rows.targets, whole.stop, whole.stop, sequences.items)
    return Rows(rows.users, rows.targets, (rows.stop + 1).clamp(max=whole.stop), whole.stop, sequences.items)


def _evaluation_rows(part: Dataset, sequences: _Sequences) -> Rows:
    """Validation or test rows with everything that the user did before."""
    users, targets = part.inter_feat[part.uid_field], part.inter_feat[part.iid_field]
    rows, given = sequences.rows(users, targets), _given_histories(part)
    return rows if given is None or _agree(rows, given) else _as_given(users, targets, given)


def _given_histories(part: Dataset) -> tuple[Tensor, Tensor] | None:
    """The histories that a sequential data set holds, [N, L] and [N]; None for other data sets."""
    field = part.iid_field + part.config["LIST_SUFFIX"]
    if field not in part.inter_feat:
        return None
    return part.inter_feat[field], part.inter_feat[part.config["ITEM_LIST_LENGTH_FIELD"]].long()


def _cut_histories(part: Dataset) -> None:
    """Leave the newest items of histories that pre-split files give longer than the model reads; RecBole does not."""
    given, longest = _given_histories(part), part.config["MAX_ITEM_LIST_LENGTH"]
    if given is None or given[0].shape[1] <= longest:
        return
    histories, lengths = given
    column = (lengths - longest).clamp(min=0)[:, None] + torch.arange(longest)  # [N, longest]
    part.inter_feat[part.iid_field + part.config["LIST_SUFFIX"]] = histories.gather(1, column)
    part.inter_feat[part.config["ITEM_LIST_LENGTH_FIELD"]] = lengths.clamp(max=longest)


def _agree(rows: Rows, given: tuple[Tensor, Tensor]) -> bool:
    """Whether the rebuilt histories end in the given ones (which RecBole cut to its maximum length)."""
    histories, lengths = given
    longest = histories.shape[1]
    if len(rows) == 0:
        return True
    for index in torch.arange(len(rows)).split(1 << 16):
        rebuilt, rebuilt_length = rows.histories(index, longest)
        if not torch.equal(rebuilt_length, lengths[index]):
            return False
        if not torch.equal(rebuilt, histories[index][:, : rebuilt.shape[1]]):
            return False
    return True


def _as_given(users: Tensor, targets: Tensor, given: tuple[Tensor, Tensor]) -> Rows:
    """Rows of pre-split files, whose histories need not follow from each other."""
    histories, lengths = given
    stop = lengths.cumsum(0)
    return Rows(users, targets, stop - lengths, stop, histories[torch.arange(histories.shape[1]) < lengths[:, None]])


def by_domain(config: Config, dataset: Dataset) -> list[tuple[Config, list[str]]]:
    """Configuration and item tokens of each domain, in the order of item ids; one where it is a plain data set."""
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    return getattr(dataset, "domains", None) or [(config, tokens)]


def in_dataset(path: str, config: Config) -> Path:
    """A path with the name of the data set in place of `{dataset}`, for settings that several data sets share."""
    return Path(path.replace("{dataset}", config["dataset"]))


@contextmanager
def _counting_loaded_rows() -> Iterator[dict[str, int]]:
    """Number of rows that RecBole's reader gets from each file, by path."""
    counts: dict[str, int] = {}
    load = Dataset._load_feat

    def counting(self: Dataset, filepath: str, source: Any) -> Any:
        frame = load(self, filepath, source)
        if frame is not None:
            counts[filepath] = len(frame)
        return frame

    Dataset._load_feat = counting
    try:
        yield counts
    finally:
        Dataset._load_feat = load


def _report_lost_rows(config: Config, dataset: Dataset, loaded: dict[str, int]) -> None:
    """Say what the reader lost (a double quote joins lines) and what the filters took out."""
    for filepath, rows in loaded.items():
        with Path(filepath).open(encoding=config["encoding"] or "utf-8") as file:
            lines = sum(1 for line in file if line.strip()) - 1
        if lines != rows:
            getLogger().warning(
                f"RecBole's reader made {rows} rows of the {lines} lines of {filepath}: look for double quotes, "
                "which it takes for the start of a text that may span lines."
            )
    interactions = sum(rows for filepath, rows in loaded.items() if filepath.endswith(".inter"))
    if interactions > len(dataset.inter_feat):
        getLogger().warning(
            f"RecBole's filters kept {len(dataset.inter_feat)} of {interactions} interactions "
            "(missing ids, duplicates, value and count intervals)."
        )
