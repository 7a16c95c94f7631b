"""The order of events: RecBole sorts by times in single precision, where real timestamps fall together.

Under `kd_protocol: ranking` RecBole's own code sorts by the exact times, equal ones in the order of the file. Otherwise
a warning counts the users whose order is lost. Here the exact times stand in for RecBole's while it sorts and splits;
afterwards students find the values that they always found.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from logging import getLogger
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.dataset.customized_dataset import DIENDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor

from recbole_prmkd.data.event_times import NoTime, times_of
from recbole_prmkd.data.lost_lines import as_written, replaced
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import ranks_all_alike

_EXACT_WHOLE = 2.0**53  # from here on double precision skips whole numbers


class EventTimes:
    """The exact times of a data set's interactions, while RecBole reads, sorts and splits it.

    exact: whether they decide the order; else they are only compared with RecBole's.
    """

    def __init__(self, config: Config) -> None:
        self.exact = ranks_all_alike(config)
        self._sorts = config["eval_args"]["order"] == "TO" and not config["benchmark_filename"]
        self._times: np.ndarray | None = None  # [N], in the order of the data set's frame

    def of_pre_split(self, count: int) -> Tensor | None:
        """Exact times of the first interactions of pre-split files, [count]; None where they do not decide."""
        if not self.exact or self._sorts or self._times is None:
            return None
        return torch.from_numpy(self._times[:count].copy())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Inside, RecBole reads and splits with these times."""
        with ExitStack() as stack:
            stack.enter_context(replaced(Dataset, "_fill_nan", self._noting))
            stack.enter_context(replaced(Dataset, "build", self._building))
            if self.exact:
                stack.enter_context(replaced(Dataset, "_load_feat", _reading_exactly))
                stack.enter_context(replaced(Dataset, "_remove_duplication", _in_order_of_file))
            yield

    def _noting(self, own: Callable[[Dataset], None]) -> Callable[[Dataset], None]:
        def filled(dataset: Dataset) -> None:
            own(dataset)
            self._times = exact_times(dataset)

        return filled

    def _building(self, own: Callable[[Dataset], list[Dataset]]) -> Callable[[Dataset], list[Dataset]]:
        def build(dataset: Dataset) -> list[Dataset]:
            if self._times is None and isinstance(dataset.inter_feat, pd.DataFrame):  # a data set that was saved
                self._times = exact_times(dataset)
            if self._times is None or not self._sorts:
                return own(dataset)
            stand_in = _StandIn(self._times, self.exact)
            with replaced(Dataset, "_dataframe_to_interaction", partial(_converting, use=stand_in.put)):
                parts = own(dataset)
            for part in (dataset, *parts):
                stand_in.take_back(part)
            return parts

        return build


class _StandIn:
    """Exact times in the column that RecBole sorts by, and the way back to the column as RecBole reads it."""

    def __init__(self, times: np.ndarray, exact: bool) -> None:
        self._times = times
        self._exact = exact
        self._as_read: Tensor | None = None  # RecBole's values by rank, where they are not the times themselves
        self._kind = torch.float32

    def put(self, dataset: Dataset, interactions: Interaction) -> None:
        """Let the times stand in the time column; or only warn of the users for whom it has lost their order."""
        field = dataset.time_field
        as_read = interactions[field]  # [N], or [N, 2] of a numerical feature: its value, and its bucket
        sorted_by = as_read[..., 0] if as_read.dim() > 1 else as_read
        if not self._exact:
            token = dataset.field2type[field] == FeatureType.TOKEN
            if dataset.uid_field in interactions:
                _warn_of_lost(interactions[dataset.uid_field].numpy(), self._times, sorted_by.numpy(), token)
            return
        times, self._kind = torch.from_numpy(self._times), as_read.dtype
        if not torch.equal(times.float(), sorted_by.float()):  # normalised, discretised, or of another type
            _, first, rank = np.unique(self._times, return_index=True, return_inverse=True)
            self._as_read = torch.cat([torch.zeros_like(as_read[:1]), as_read[first]])
            times = torch.from_numpy(rank) + 1  # 0 is padding
        column = as_read.double() if as_read.is_floating_point() else as_read.clone()
        (column[..., 0] if column.dim() > 1 else column)[:] = times
        interactions.interaction[field] = column

    def take_back(self, dataset: Dataset) -> None:
        """Put RecBole's own values back into the column and its histories."""
        if not self._exact:
            return
        field, columns = dataset.time_field, dataset.inter_feat.interaction
        histories = field + (dataset.config["LIST_SUFFIX"] or "")
        if field in columns:
            columns[field] = self._own(columns[field], columns[field].dim() > 1)
        if histories != field and histories in columns:
            values = self._own(columns[histories], columns[histories].dim() > 2)
            columns[histories] = values.double() if isinstance(dataset, DIENDataset) else values

    def _own(self, column: Tensor, pairs: bool) -> Tensor:
        if self._as_read is None:
            return column.to(self._kind)
        return self._as_read[(column[..., 0] if pairs else column).long()]


def _converting(own: Callable[..., Interaction], use: Callable[[Dataset, Interaction], None]) -> Callable[..., Any]:
    def convert(dataset: Dataset, frame: pd.DataFrame) -> Interaction:
        interactions = own(dataset, frame)
        if frame is dataset.inter_feat and dataset.time_field in interactions:
            use(dataset, interactions)
        return interactions

    return convert


def _warn_of_lost(users: np.ndarray, times: np.ndarray, sorted_by: np.ndarray, token: bool) -> None:
    """Warn of users with two events at different times which RecBole's sorting does not put in that order."""
    if np.array_equal(sorted_by, times):
        return
    order = np.lexsort((times, users))
    users, times, sorted_by = users[order], times[order], sorted_by[order]
    same_user, later = users[1:] == users[:-1], times[1:] > times[:-1]
    lost = np.unique(users[1:][same_user & later & (sorted_by[1:] <= sorted_by[:-1])])
    if len(lost):
        cause = "orders a time of type token by its first line" if token else "holds times in single precision"
        getLogger().warning(
            f"RecBole {cause}, so the order of events is lost for {len(lost)} of {len(np.unique(users))} users, and "
            "their last item may not be the last: write --kd_protocol=ranking for the exact order."
        )


def exact_times(dataset: Dataset) -> np.ndarray | None:
    """Exact times of the interactions, missing ones at the mean, [N]; None where the column holds none."""
    field, frame = dataset.time_field, dataset.inter_feat
    if field not in frame or dataset.field2type[field] not in (FeatureType.FLOAT, FeatureType.TOKEN):
        return None
    column = frame[field]
    if dataset.field2type[field] == FeatureType.TOKEN:
        tokens = pd.Series(dataset.field2id_token[field], dtype=object)
        try:
            column = pd.Series(times_of(tokens.where(tokens != "[PAD]"))[column.to_numpy()])
        except NoTime:
            return None
        column = column.fillna(column.mean())
    elif column.dtype != np.float64:  # the pairs of a numerical feature, in a data set that was saved
        return None
    return column.to_numpy(copy=True)


def _reading_exactly(own: Callable[..., Any]) -> Callable[..., Any]:
    """The reader of interactions, which reads dates, and whole numbers beyond double precision, in their order."""

    def load(dataset: Dataset, filepath: Any, source: Any) -> Any:
        field = dataset.time_field
        try:
            frame = own(dataset, filepath, source)
        except ValueError:
            frame = _read_with_text(own, dataset, filepath, source)
            if frame is None:
                raise
            frame[field] = _checked(dataset, filepath, frame[field])
            return frame
        if source != FeatureSource.INTERACTION or frame is None or field not in frame:
            return frame
        if dataset.field2type[field] == FeatureType.TOKEN:
            _checked(dataset, filepath, frame[field])
        elif frame[field].dtype == np.float64 and (frame[field].abs() >= _EXACT_WHOLE).any():
            text = as_written(dataset, filepath, [field])[field]
            frame[field] = _checked(dataset, filepath, text.where(frame[field].notna()))
        return frame

    return load


def _read_with_text(own: Callable[..., Any], dataset: Dataset, filepath: Any, source: Any) -> pd.DataFrame | None:
    """RecBole's reading with the times as text; None where that does not help."""
    if source != FeatureSource.INTERACTION:
        return None

    def with_text(read: Callable[..., Any]) -> Callable[..., Any]:
        def read_csv(*args: Any, dtype: dict[str, Any], **more: Any) -> Any:
            kinds = {name: str if name.split(":")[0] == dataset.time_field else kind for name, kind in dtype.items()}
            return read(*args, dtype=kinds, **more)

        return read_csv

    try:
        with replaced(pd, "read_csv", with_text):
            frame = own(dataset, filepath, source)
    except ValueError:  # what RecBole said first stands
        return None
    return (
        frame if dataset.time_field in frame and dataset.field2type[dataset.time_field] == FeatureType.FLOAT else None
    )


def _checked(dataset: Dataset, filepath: Any, texts: pd.Series) -> np.ndarray:
    try:
        return times_of(texts)
    except NoTime as error:
        separator, encoding = dataset.config["field_separator"], dataset.config["encoding"]
        with open(filepath, encoding=encoding) as lines:
            cells = ([cell.strip('"').strip() for cell in line.rstrip("\r\n").split(separator)] for line in lines)
            line = next((number for number, row in enumerate(cells, 1) if error.text in row), None)
        place = f"{filepath}, line {line}" if line else str(filepath)
        raise UserError(f"{place}: {error.text!r} in column {dataset.time_field!r} {error}.") from error


def _in_order_of_file(own: Callable[[Dataset], None]) -> Callable[[Dataset], None]:
    """RecBole's removal of repeated pairs, whose sorting by time leaves equal times in any order."""

    def remove(dataset: Dataset) -> None:
        field = dataset.time_field
        if dataset.config["rm_dup_inter"] is None or field not in dataset.inter_feat:
            own(dataset)
            return
        column = dataset.inter_feat[field]
        token = dataset.field2type[field] == FeatureType.TOKEN
        order = np.argsort(times_of(column) if token else column.to_numpy(), kind="stable")
        dataset.inter_feat[field] = pd.Series(np.arange(len(order)), index=column.index[order])
        own(dataset)
        dataset.inter_feat[field] = column[dataset.inter_feat.index]

    return remove
