"""RecBole's three parts of a data set as examples with their histories.

A sequential student's batches hold each example's history. Other students' batches do not, so that it is rebuilt here
from the training part, from the items before the example alone.
"""

import inspect
from dataclasses import dataclass
from logging import getLogger

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import get_model
from torch import Tensor

from recbole_prmkd.data.examples import Examples


@dataclass(frozen=True)
class Parts:
    """The three parts as examples in internal item ids.

    future: the training examples with the user's training items after the target in place of the history.
    """

    train: Examples
    future: Examples
    valid: Examples
    test: Examples


def snapshot(part: Dataset) -> Dataset:
    """The part with its columns as they are now, whatever takes their place later."""
    return part.copy(Interaction(dict(part.inter_feat.interaction)))


def make_parts(train: Dataset, valid: Dataset | None, test: Dataset | None, *, times: Tensor | None = None) -> Parts:
    """The examples of the parts; None: an empty one.

    times: exact ones of pre-split training interactions, [N], which decide their order where no histories do.
    """
    examples, sequences = _train_examples(train, times)
    nobody = sequences.examples(examples.users[:0], examples.targets[:0])
    validation = _evaluation_examples(valid, sequences) if valid else nobody
    sequences_then = sequences.followed_by(validation.users, validation.targets)
    return Parts(
        train=examples,
        future=_future(examples, sequences),
        valid=validation,
        test=_evaluation_examples(test, sequences_then) if test else nobody,
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


def _train_examples(train: Dataset, times: Tensor | None) -> tuple[Examples, _Sequences]:
    """RecBole's training examples in RecBole's order, and the users' training sequences."""
    users, targets = train.inter_feat[train.uid_field], train.inter_feat[train.iid_field]
    given = _given_histories(train)
    order = _in_time_order(train, users, given, times)
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


def _in_time_order(train: Dataset, users: Tensor, given: tuple[Tensor, Tensor] | None, times: Tensor | None) -> Tensor:
    """Example numbers by user, each user's in time order.

    RecBole keeps them so, except in pre-split files, which it reads as they are. There the timestamps decide, or the
    lengths of the given histories.
    """
    first: Tensor | None = given[1] if given is not None else None
    if train.config["benchmark_filename"] and given is None:
        if times is not None:
            first = times
        elif train.time_field in train.inter_feat:
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
    """The histories that a data set holds in item ids, [N, L] and [N]; None where there are none."""
    field, length = part.iid_field + part.config["LIST_SUFFIX"], part.config["ITEM_LIST_LENGTH_FIELD"]
    if field not in part.inter_feat:
        return None
    histories = part.inter_feat[field]
    if part.config["benchmark_filename"] and not _same_numbers(part, field):
        getLogger().warning(
            f"{field} of the pre-split files numbers items in its own way, so histories are taken from the targets: "
            f"set alias_of_item_id to ['{field}']."
        )
        return None
    if length in part.inter_feat:
        return histories, part.inter_feat[length].long()
    return histories, (histories != 0).sum(1)  # RecBole counts them for sequential models alone


def _same_numbers(part: Dataset, field: str) -> bool:
    tokens = part.field2id_token
    return field in tokens and np.array_equal(tokens[field], tokens[part.iid_field])


def cut_histories(part: Dataset, config: Config) -> None:
    """Leave the newest items of histories that pre-split files give longer than the model reads; RecBole does not."""
    field, length = part.iid_field + part.config["LIST_SUFFIX"], part.config["ITEM_LIST_LENGTH_FIELD"]
    max_length = config["MAX_ITEM_LIST_LENGTH"]
    if field not in part.inter_feat or length not in part.inter_feat or part.inter_feat[field].shape[1] <= max_length:
        return
    if config["kd"] == "none" and config["kd_protocol"] != "ranking" and _reads_any_length(config):
        return  # stock RecBole trains on them
    histories, lengths = part.inter_feat[field], part.inter_feat[length].long()
    column = (lengths - max_length).clamp(min=0)[:, None] + torch.arange(max_length)  # [N, max_length]
    part.inter_feat[field] = histories.gather(1, column)
    part.inter_feat[length] = lengths.clamp(max=max_length)


def _reads_any_length(config: Config) -> bool:
    """Whether the model's own code never asks for the maximum length, as that of GRU4Rec."""
    own = [
        kind
        for kind in get_model(config["model"]).__mro__
        if issubclass(kind, SequentialRecommender) and kind is not SequentialRecommender
    ]
    try:
        code = "".join(map(inspect.getsource, own))
    except (OSError, TypeError):  # a class that was typed in
        return False
    return "max_seq_length" not in code and "MAX_ITEM_LIST_LENGTH" not in code


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
