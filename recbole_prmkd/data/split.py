"""The data of a run: RecBole's own data set and split, and the same split as examples with their histories.

A sequential student's batches hold each example's history. Other students' batches do not, so that it is rebuilt here
from the training split, from the items before the example alone.
"""

from collections.abc import Iterator
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

from recbole_prmkd.data import atomic_files
from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.boundary import recbole_errors


@dataclass(frozen=True)
class Split:
    """A student's data: RecBole's three loaders, and the same three parts as examples in internal item ids.

    future: the training examples with the user's training items after the target in place of the history.
    """

    dataset: Dataset
    train_data: AbstractDataLoader
    valid_data: AbstractDataLoader
    test_data: AbstractDataLoader
    train: Examples
    future: Examples
    valid: Examples
    test: Examples
    item_tokens: list[str]  # by internal id, from 1
    user_tokens: list[str]


def load_split(config: Config) -> Split:
    """Read and split the data set with RecBole's own code, in RecBole's own order of calls.

    Adds one column, the example's number, to the training interactions; the student does not see it. Logs how
    many lines of the file did not become interactions.

    Raises:
        UserError: the files or settings cannot be read, or a part is empty.
    """
    folder, layout = Path(config["data_path"]), (config["field_separator"], config["encoding"])
    reading = recbole_errors(
        f"read {config['dataset']} with these settings",
        config,
        lambda: atomic_files.fault_of(folder, config["dataset"], *layout),
    )
    with reading, _counting_loaded_lines() as loaded:
        dataset = create_dataset(config)
        getLogger().info(dataset)
    _report_lost_lines(config, dataset, loaded)
    with recbole_errors(f"split {config['dataset']} with these settings", config):
        train_data, valid_data, test_data = data_preparation(config, dataset)
    parts = {"training": train_data, "validation": valid_data, "test": test_data}
    for name, part in parts.items():
        if len(part._dataset.inter_feat) == 0:
            raise UserError(f"The {name} split is empty: lower the filters, or change the split in eval_args.")
    return _split(dataset, train_data, valid_data, test_data)


@contextmanager
def split_of_loaders(train_data: Any, valid_data: Any = None) -> Iterator[Split]:
    """The same from loaders that RecBole's own code has made, which are put back afterwards; there is no test part."""
    split = _split(train_data._dataset, train_data, valid_data, None)
    try:
        yield split
    finally:
        del train_data._dataset.inter_feat.interaction[EXAMPLE]


def _split(dataset: Dataset, train_data: Any, valid_data: Any, test_data: Any) -> Split:
    train = train_data._dataset.inter_feat
    examples, sequences = _train_examples(train_data._dataset)
    train.interaction[EXAMPLE] = torch.arange(len(train))
    nobody = sequences.examples(examples.users[:0], examples.targets[:0])
    valid = _evaluation_examples(valid_data._dataset, sequences) if valid_data else nobody
    sequences_then = sequences.followed_by(valid.users, valid.targets)
    test = _evaluation_examples(test_data._dataset, sequences_then) if test_data else nobody
    for part in (dataset, *(loader._dataset for loader in (train_data, valid_data, test_data) if loader)):
        _cut_histories(part)
    getLogger().info(f"Examples: {len(examples)} for training, {len(valid)} for validation, {len(test)} for test.")
    return Split(
        dataset=dataset,
        train_data=train_data,
        valid_data=valid_data,
        test_data=test_data,
        train=examples,
        future=_future(examples, sequences),
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

    def examples(self, users: Tensor, targets: Tensor) -> Examples:
        """Examples whose history is the user's whole sequence."""
        start = torch.searchsorted(self.users, users)
        stop = torch.searchsorted(self.users, users, right=True)
        return Examples(users, targets, start, stop, self.items)

    def followed_by(self, users: Tensor, items: Tensor) -> "_Sequences":
        """The sequences with these items at their ends."""
        users, items = torch.cat([self.users, users]), torch.cat([self.items, items])
        order = torch.argsort(users, stable=True)
        return _Sequences(users[order], items[order])

    def followed_one_by_one(self, users: Tensor, targets: Tensor, order: Tensor) -> tuple[Examples, "_Sequences"]:
        """Examples [N] that follow on the sequences and on each other, and the sequences with their targets added.

        order: [N] numbers of the examples, by user, each user's in time order.
        """
        sorted_users = users[order]
        whole = self.followed_by(sorted_users, targets[order])
        rank = torch.empty_like(order)  # among the user's examples
        rank[order] = torch.arange(len(order)) - torch.searchsorted(sorted_users, sorted_users)
        start = torch.searchsorted(whole.users, users)
        before = self.examples(users, targets).lengths
        return Examples(users, targets, start, start + before + rank, whole.items), whole


def _train_examples(train: Dataset) -> tuple[Examples, _Sequences]:
    """RecBole's training examples in RecBole's order, and the users' training sequences."""
    users, targets = train.inter_feat[train.uid_field], train.inter_feat[train.iid_field]
    given = _given_histories(train)
    order = _in_time_order(train, users, given)
    if given is None:
        return _Sequences(users[:0], targets[:0]).followed_one_by_one(users, targets, order)
    # A sequential data set: a user's first example holds the items before it, every example adds its target.
    histories, lengths = given
    sorted_users = users[order]
    first = order[torch.searchsorted(sorted_users, torch.unique(sorted_users))]  # [users]
    inside = torch.arange(histories.shape[1]) < lengths[first][:, None]
    before = _Sequences(users[first].repeat_interleave(lengths[first]), histories[first][inside])
    examples, sequences = before.followed_one_by_one(users, targets, order)
    return (examples if _agree(examples, given) else _as_given(users, targets, given)), sequences


def _in_time_order(train: Dataset, users: Tensor, given: tuple[Tensor, Tensor] | None) -> Tensor:
    """Example numbers by user, each user's in time order.

    RecBole keeps them so, except in pre-split files, which it reads as they are. There the timestamps decide, or the
    lengths of the given histories.
    """
    first: Tensor | None = given[1] if given is not None else None
    if train.config["benchmark_filename"] and given is None:
        if train.time_field in train.inter_feat:
            first = train.inter_feat[train.time_field]
        else:
            getLogger().warning(
                f"The pre-split files have no {train.time_field} that is loaded: the order of their lines is taken as "
                "that of time."
            )
    order = torch.arange(len(users)) if first is None else torch.argsort(first, stable=True)
    return order[torch.argsort(users[order], stable=True)]


def _future(train: Examples, sequences: _Sequences) -> Examples:
    """The training examples with the user's later training items as history."""
    whole = sequences.examples(train.users, train.targets)
    if train.items is not sequences.items:  # given histories do not say where they are in the sequence
        getLogger().warning(
            "The histories of the pre-split files do not follow from each other: examples have no future items."
        )
        return Examples(train.users, train.targets, whole.stop, whole.stop, sequences.items)
    return Examples(train.users, train.targets, (train.stop + 1).clamp(max=whole.stop), whole.stop, sequences.items)


def _evaluation_examples(part: Dataset, sequences: _Sequences) -> Examples:
    """Validation or test examples with all of the user's items before them.

    Where a sequential student's part has several examples of a user, each follows on the ones before it.
    """
    users, targets = part.inter_feat[part.uid_field], part.inter_feat[part.iid_field]
    given = _given_histories(part)
    if given is None:
        return sequences.examples(users, targets)
    examples, _ = sequences.followed_one_by_one(users, targets, torch.argsort(users, stable=True))
    return examples if _agree(examples, given) else _as_given(users, targets, given)


def _given_histories(part: Dataset) -> tuple[Tensor, Tensor] | None:
    """The histories that a sequential data set holds, [N, L] and [N]; None for other data sets."""
    field = part.iid_field + part.config["LIST_SUFFIX"]
    if field not in part.inter_feat:
        return None
    return part.inter_feat[field], part.inter_feat[part.config["ITEM_LIST_LENGTH_FIELD"]].long()


def _cut_histories(part: Dataset) -> None:
    """Leave the newest items of histories that pre-split files give longer than the model reads; RecBole does not."""
    given, max_length = _given_histories(part), part.config["MAX_ITEM_LIST_LENGTH"]
    if given is None or given[0].shape[1] <= max_length:
        return
    histories, lengths = given
    column = (lengths - max_length).clamp(min=0)[:, None] + torch.arange(max_length)  # [N, max_length]
    part.inter_feat[part.iid_field + part.config["LIST_SUFFIX"]] = histories.gather(1, column)
    part.inter_feat[part.config["ITEM_LIST_LENGTH_FIELD"]] = lengths.clamp(max=max_length)


def _agree(examples: Examples, given: tuple[Tensor, Tensor]) -> bool:
    """Whether the rebuilt histories end in the given ones (which RecBole cut to its maximum length)."""
    histories, lengths = given
    max_length = histories.shape[1]
    if len(examples) == 0:
        return True
    for index in torch.arange(len(examples)).split(1 << 16):
        rebuilt, rebuilt_length = examples.histories(index, max_length)
        if not torch.equal(rebuilt_length, lengths[index]):
            return False
        if not torch.equal(rebuilt, histories[index][:, : rebuilt.shape[1]]):
            return False
    return True


def _as_given(users: Tensor, targets: Tensor, given: tuple[Tensor, Tensor]) -> Examples:
    """Examples of pre-split files, whose histories need not follow from each other."""
    histories, lengths = given
    stop = lengths.cumsum(0)
    return Examples(
        users, targets, stop - lengths, stop, histories[torch.arange(histories.shape[1]) < lengths[:, None]]
    )


def by_domain(config: Config, dataset: Dataset) -> list[tuple[Config, list[str]]]:
    """Configuration and item tokens of each domain, in the order of item ids; one where it is a plain data set."""
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    return getattr(dataset, "domains", None) or [(config, tokens)]


def in_dataset(path: str, config: Config) -> Path:
    """A path with the name of the data set in place of `{dataset}`, for settings that several data sets share."""
    return Path(path.replace("{dataset}", config["dataset"]))


@contextmanager
def _counting_loaded_lines() -> Iterator[dict[str, int]]:
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


def _report_lost_lines(config: Config, dataset: Dataset, loaded: dict[str, int]) -> None:
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
