"""A RecBole data set and its configuration as plain tensors and JSON, and back.

The data set is copied as RecBole has read, filtered and numbered it, before it is split. Whatever RecBole builds from
it (graphs, histories, features, the split itself) is then built by RecBole's own code, for every kind of model alike.
Columns take the smallest type that holds them without loss. Nothing is pickled.
"""

import enum
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.utils import EvaluatorType, FeatureSource, FeatureType, InputType, ModelType
from torch import Tensor

from recbole_prmkd.recbole_host.processes import on_cpu

Tensors = dict[str, Tensor]

_ENUMS = {kind.__name__: kind for kind in (EvaluatorType, FeatureSource, FeatureType, InputType, ModelType)}
_KIND = "$kind"  # key that marks what JSON has no word for
_LEFT_OUT = {"config", "logger", "field2token_id", "seq_sampler"}  # made anew from the others, or of no further use
_SMALL = (np.uint8, np.int16, np.int32, np.float32)


class CannotCopy(Exception):
    """An attribute of a kind that the copy has no form for."""


def copy_dataset(dataset: Dataset) -> tuple[Tensors, dict[str, Any]]:
    """The data set's tensors by name, and the rest of it as JSON holds it; of a data set that is not yet split.

    Raises:
        CannotCopy: it is of a class of the user's own, or has an attribute of an unknown kind.
    """
    kind = type(dataset).__name__
    if getattr(recbole.data.dataset, kind, None) is not type(dataset):
        raise CannotCopy(f"its data set is of the class {kind}, which is none of RecBole's")
    tensors: Tensors = {}
    attributes = {name: _packed(value, name, tensors) for name, value in vars(dataset).items() if name not in _LEFT_OUT}
    return tensors, {"class": kind, "attributes": attributes}


def restored_dataset(tensors: Mapping[str, Tensor], content: Mapping[str, Any], config: Config) -> Dataset:
    """The data set that was copied.

    Raises:
        ValueError, KeyError, TypeError: the content was not written by `copy_dataset`.
    """
    kind = getattr(recbole.data.dataset, content["class"])
    if not (isinstance(kind, type) and issubclass(kind, Dataset)):
        raise ValueError(f"{content['class']} is no data set of RecBole's")
    dataset: Any = object.__new__(kind)
    dataset.config, dataset.logger, dataset.seq_sampler = config, getLogger(), None
    for name, value in content["attributes"].items():
        setattr(dataset, name, _unpacked(value, tensors))
    dataset.field2token_id = {
        field: {token: number for number, token in enumerate(tokens)}
        for field, tokens in dataset.field2id_token.items()
    }
    return dataset


def copy_config(config: Config) -> dict[str, Any]:
    """Every setting in force as JSON holds it, but for the device."""
    settings = {key: value for key, value in config.final_config_dict.items() if key != "device"}
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "parameters": {name: list(keys) for name, keys in config.parameters.items()},
        "settings": {str(key): _packed_setting(value) for key, value in settings.items()},
    }


def restored_config(content: Mapping[str, Any]) -> Config:
    """The configuration that was copied, for one process on this machine; RecBole reads no file for it.

    Raises:
        ValueError, KeyError, TypeError: the content was not written by `copy_config`.
    """
    config = Config.__new__(Config)
    config.compatibility_settings()
    config.model, config.dataset = content["model"], content["dataset"]
    config.parameters = {name: list(keys) for name, keys in content["parameters"].items()}
    config.final_config_dict = {key: _unpacked(value, {}) for key, value in content["settings"].items()}
    config.external_config_dict, config.cmd_config_dict, config.internal_config_dict = {}, {}, {}
    gpu = torch.cuda.is_available() and not on_cpu(config["use_gpu"])
    own = {
        "device": torch.device("cuda" if gpu else "cpu"),
        "single_spec": True,
        "local_rank": 0,
        "save_dataset": False,
        "save_dataloaders": False,
        "dataloaders_save_path": None,
        "dataset_save_path": None,
        "checkpoint_dir": str(Path(os.devnull) / "none"),  # RecBole unpickles split data that it finds there
        "log_wandb": False,
    }
    for key, value in own.items():
        config[key] = value
    return config


def strings_as_tensors(strings: Any) -> tuple[Tensor, Tensor]:
    """Strings as one array of UTF-8 bytes and the number of bytes of each: [M] uint8 and [N] int32."""
    encoded = [str(text).encode("utf-8", "surrogatepass") for text in strings]
    joined = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
    return torch.from_numpy(joined), torch.tensor([len(text) for text in encoded], dtype=torch.int32)


def strings_of(joined: Tensor, lengths: Tensor) -> list[str]:
    """What `strings_as_tensors` was given."""
    content, stops = joined.numpy().tobytes(), np.cumsum(lengths.numpy(), dtype=np.int64)
    starts = stops - lengths.numpy()
    return [
        content[start:stop].decode("utf-8", "surrogatepass")
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]


def _packed_setting(value: Any) -> Any:
    try:
        return _packed(value, "", None)
    except CannotCopy:
        return str(value)


def _packed(value: Any, name: str, tensors: Tensors | None) -> Any:
    """The value as JSON; arrays go into `tensors` under `name` (None: there is no place for them)."""
    if isinstance(value, enum.Enum) and type(value).__name__ in _ENUMS:
        return {_KIND: "enum", "enum": type(value).__name__, "name": value.name}
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set):
        items = [_packed(item, f"{name}.{number}", tensors) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {_KIND: type(value).__name__, "items": items}
    if isinstance(value, dict):
        pairs = [[_packed(key, name, None), _packed(item, f"{name}.{key}", tensors)] for key, item in value.items()]
        return {_KIND: "counts" if isinstance(value, defaultdict) else "dict", "pairs": pairs}
    if tensors is not None and isinstance(value, pd.DataFrame | np.ndarray | Tensor):
        return _packed_table(value, name, tensors)
    raise CannotCopy(f"its data set's {name} is of the kind {type(value).__name__}, which is not kept")


def _packed_table(value: Any, name: str, tensors: Tensors) -> dict[str, Any]:
    if isinstance(value, pd.DataFrame):
        columns = {str(column): value[column].to_numpy() for column in value}
        packed = [[column, _packed_table(cells, f"{name}.{column}", tensors)] for column, cells in columns.items()]
        return {_KIND: "frame", "columns": packed}
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {_KIND: "tensor", "name": name}
    if value.dtype.kind in "biuf":
        tensors[name] = torch.from_numpy(_smallest(value))
        return {_KIND: "array", "name": name, "dtype": str(value.dtype)}
    if value.dtype.kind == "U" or all(isinstance(cell, str) for cell in value):
        tensors[name], tensors[f"{name}.lengths"] = strings_as_tensors(value)
        return {_KIND: "strings", "name": name, "dtype": value.dtype.kind}
    cells = [np.asarray(cell) for cell in value]
    if not all(cell.ndim and cell.dtype.kind in "biuf" for cell in cells):
        raise CannotCopy(f"the column {name} of its data set holds objects")
    kinds = [cell.dtype for cell in cells if len(cell)] or [np.dtype(np.int64)]
    joined = np.concatenate([cell for cell in cells if len(cell)] or [np.zeros(0, np.int64)])
    tensors[name] = torch.from_numpy(_smallest(joined))
    tensors[f"{name}.lengths"] = torch.tensor([len(cell) for cell in cells], dtype=torch.int32)
    return {_KIND: "cells", "name": name, "dtype": str(np.result_type(*kinds))}


def _smallest(array: np.ndarray) -> np.ndarray:
    """The array in the smallest type that holds each of its numbers exactly."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "b" or not array.size:
        return array.copy()
    for kind in _SMALL:
        if np.dtype(kind).itemsize >= array.dtype.itemsize:
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            small = array.astype(kind)
        if np.array_equal(small.astype(array.dtype), array, equal_nan=array.dtype.kind == "f"):
            return small
    return array.copy()


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    return _UNPACK[value[_KIND]](value, tensors)


def _unpacked_dict(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    return {_unpacked(key, tensors): _unpacked(item, tensors) for key, item in value["pairs"]}


def _unpacked_strings(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> np.ndarray:
    strings = strings_of(tensors[value["name"]], tensors[f"{value['name']}.lengths"])
    return np.array(strings, dtype=object if value["dtype"] == "O" else str)


def _unpacked_cells(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> np.ndarray:
    joined = tensors[value["name"]].numpy().astype(value["dtype"])
    stops = np.cumsum(tensors[f"{value['name']}.lengths"].numpy())
    cells = np.empty(len(stops), dtype=object)
    for number, cell in enumerate(np.split(joined, stops[:-1]) if len(stops) else []):
        cells[number] = cell  # all at once, cells of one length would make a table
    return cells


def _unpacked_frame(value: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> pd.DataFrame:
    return pd.DataFrame({column: _unpacked(cells, tensors) for column, cells in value["columns"]})


_UNPACK: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Any]] = {
    "enum": lambda value, _: _ENUMS[value["enum"]][value["name"]],
    "tuple": lambda value, tensors: tuple(_unpacked(value["items"], tensors)),
    "set": lambda value, tensors: set(_unpacked(value["items"], tensors)),
    "dict": _unpacked_dict,
    "counts": lambda value, tensors: defaultdict(int, _unpacked_dict(value, tensors)),
    "tensor": lambda value, tensors: tensors[value["name"]].clone(),
    "array": lambda value, tensors: tensors[value["name"]].numpy().astype(value["dtype"]),
    "strings": _unpacked_strings,
    "cells": _unpacked_cells,
    "frame": _unpacked_frame,
}
