"""Numbers in data files that are no numbers: missing, NaN or infinite values are counted as RecBole reads them."""

from collections.abc import Callable
from logging import getLogger
from typing import Any

import numpy as np
import pandas as pd
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType


def counting(own: Callable[..., Any]) -> Callable[..., Any]:
    """RecBole's reader of one file, which warns of each column of numbers that is not finite in some lines."""

    def load(self: Dataset, filepath: Any, source: Any) -> Any:
        frame = own(self, filepath, source)
        for field in frame if frame is not None else ():
            kind = self.field2type[field]
            if kind == FeatureType.FLOAT and pd.api.types.is_numeric_dtype(frame[field]):
                _warn(filepath, field, frame[field].to_numpy(dtype=np.float64), _becomes(field == self.time_field))
            elif kind == FeatureType.FLOAT_SEQ:
                # One number for each line: a NaN where the line holds one, else an infinite value where it holds that.
                sums = [np.sum(np.asarray(values, dtype=np.float64)) for values in frame[field]]
                _warn(filepath, field, np.array(sums), "they stay as they are")
        return frame

    return load


def _becomes(time: bool) -> str:
    last = ", so that such an interaction is its user's first or last" if time else ""
    return f"RecBole puts the column's mean in the place of missing values and keeps infinite ones{last}"


def _warn(filepath: Any, field: str, values: np.ndarray, then: str) -> None:
    missing, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    if missing or infinite:
        getLogger().warning(
            f"In {missing + infinite} of {len(values)} lines of {filepath}, {field} is no finite number ({missing} "
            f"missing or NaN, {infinite} infinite): {then}. Correct these lines, or leave them out."
        )
