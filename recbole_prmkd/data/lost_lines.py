"""Interactions that RecBole's reader and filters take out: how many, why, and the ids that go with them.

RecBole's own methods run unchanged; what each one leaves is compared with what was there before.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from logging import getLogger
from typing import Any

import pandas as pd
from recbole.data.dataset import Dataset, KnowledgeBasedDataset

from recbole_prmkd.data import odd_numbers

_NAMED = 10  # ids in a message
# RecBole's filters in its own order, and why an interaction goes.
_FILTERS: list[tuple[type[Dataset], str, str]] = [
    (Dataset, "_filter_nan_user_or_item", "their user or item was read as missing"),
    (Dataset, "_remove_duplication", "they repeat a user and an item (rm_dup_inter)"),
    (Dataset, "_filter_by_field_value", "a value is outside val_interval"),
    (Dataset, "_filter_inter_by_user_or_item", "their user or item is not in the .user or .item file"),
    (
        Dataset,
        "_filter_by_inter_num",
        "their user or item has too few or too many of them (user_inter_num_interval, item_inter_num_interval)",
    ),
    (KnowledgeBasedDataset, "_filter_link", "their item is not linked to an entity of the .kg file by the .link file"),
]


@contextmanager
def reported() -> Iterator[None]:
    """Inside, each data set that RecBole reads and filters warns of what it takes out, and of odd numbers."""
    with ExitStack() as stack:
        stack.enter_context(replaced(Dataset, "_load_feat", _naming_missing))
        stack.enter_context(replaced(Dataset, "_load_feat", odd_numbers.counting))
        for owner, name, cause in _FILTERS:
            stack.enter_context(replaced(owner, name, partial(_comparing, cause=cause)))
        yield


def first_ten(ids: Iterable[Any]) -> str:
    """The first ten ids, as a message names them, and how many there are beyond."""
    named = [str(token) for token in ids]
    beyond = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return ", ".join(named[:_NAMED]) + beyond


@contextmanager
def replaced(owner: Any, name: str, around: Callable[[Any], Any]) -> Iterator[None]:
    """Inside, `around(own)` takes the place of the owner's own method or function."""
    own = owner.__dict__[name]
    setattr(owner, name, around(own))
    try:
        yield
    finally:
        setattr(owner, name, own)


def _comparing(own: Callable[[Dataset], None], cause: str) -> Callable[[Dataset], None]:
    def compared(self: Dataset) -> None:
        if self.inter_feat is None:  # load_col names no column of it
            return own(self)
        names = [name for name in (self.uid_field, self.iid_field) if name is not None and name in self.inter_feat]
        before = self.inter_feat[names]  # a copy; the filters change the frame in place
        own(self)
        after = self.inter_feat
        if len(after) == len(before):
            return
        lost = before[~before.index.isin(after.index)]
        gone = {name: lost[name][~lost[name].isin(after[name])].dropna().unique() for name in names}
        ids = "; ".join(f"no longer there: {name} {first_ten(tokens)}" for name, tokens in gone.items() if len(tokens))
        if not ids:
            pairs = [" ".join(map(str, pair)) for pair in lost[names].itertuples(index=False)]
            ids = f"{' and '.join(names)} {first_ten(pairs)}"
        getLogger().warning(f"RecBole leaves out {len(lost)} interactions, since {cause}: {ids}.")

    return compared


def _naming_missing(own: Callable[..., Any]) -> Callable[..., Any]:
    """The reader, which says which ids it has read as missing values (pandas does so with NA, null, nan, None ...)."""

    def load(self: Dataset, filepath: Any, source: Any) -> Any:
        frame = own(self, filepath, source)
        ids = [name for name in (self.uid_field, self.iid_field) if frame is not None and name in frame]
        missing = frame[ids].isnull() if ids else pd.DataFrame()
        if missing.to_numpy().any():
            raw = as_written(self, filepath, ids)
            tokens = [token for name in ids for token in raw[name][missing[name].to_numpy()].unique()]
            then = "as padding" if self.benchmark_filename_list else "and leaves out what has them"
            getLogger().warning(
                f"In {int(missing.any(axis=1).sum())} lines of {filepath} RecBole reads the id as missing, {then}: "
                f"{first_ten(repr(token) for token in dict.fromkeys(tokens))}; rename these ids to keep the lines."
            )
        return frame

    return load


def as_written(dataset: Dataset, filepath: Any, ids: list[str]) -> pd.DataFrame:
    """These columns of the file by RecBole's reader, but nothing taken as missing."""
    frame = pd.read_csv(
        filepath,
        delimiter=dataset.config["field_separator"],
        usecols=lambda column: column.split(":")[0] in ids,
        dtype=str,
        keep_default_na=False,
        encoding=dataset.config["encoding"],
        engine="python",
    )
    frame.columns = pd.Index([column.split(":")[0] for column in frame.columns])
    return frame.fillna("")
