"""A student's checkpoint, which is RecBole's own pickle, read without running what somebody else has put into it.

With `read_own` the file may mention what a checkpoint of the same student mentions when this process writes one, and
nothing else. `read_weights` needs neither student nor configuration, and reads the weights alone.
"""

import pickle
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor

from recbole_prmkd.errors import UserError

Names = set[tuple[str, str]]

# All that a file of tensors by name is made of; torch itself makes the storages.
_DATA: Names = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
}


def read_own(file: Path, config: Config, model: AbstractRecommender, what: str = "student") -> dict[str, Any]:
    """The content of the file, its tensors on the config's device; what: as messages call the model.

    Raises:
        UserError: it cannot be read, or it mentions something else.
    """
    try:
        return _load(file, config["device"], _mentioned(config, model), what)
    except UserError:
        raise
    except Exception as error:  # a damaged or a forged pickle can raise anything
        words = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged ({type(error).__name__}: {words}): train the {what} again.") from error


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of the file and what else the model keeps in it, on the CPU.

    Whatever is no data (RecBole's Config and the classes that it mentions) becomes an object without content. No code
    of the file's choice runs, and nothing is imported.

    Raises:
        UserError: it cannot be read, or the model keeps what is no data.
    """
    try:
        content = torch.load(file, map_location="cpu", pickle_module=_reader(_OnlyData), weights_only=False)
        weights, others = content["state_dict"], content.get("other_parameter") or {}
        good = isinstance(weights, dict) and all(isinstance(value, Tensor) for value in weights.values())
    except Exception as error:  # a damaged or a forged pickle can raise anything
        words = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is damaged ({type(error).__name__}: {words}): train the student again.") from error
    if not good or any(not isinstance(value, Tensor | int | float | str | None) for value in others.values()):
        raise UserError(f"{file} holds more than weights, which cannot be read safely: use a student of another class.")
    return weights, others


class _OnlyData(pickle.Unpickler):
    """Makes tensors and dictionaries; every other name becomes an object without content."""

    def find_class(self, module: str, name: str) -> Any:
        # torch's own weights-only reader does not know the pickle protocol that RecBole writes.
        return super().find_class(module, name) if (module, name) in _DATA else _NoData


class _NoData:
    """Stands for an object that is not needed: takes any arguments, any state and any items, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_NoData":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    __setitem__ = append = extend = __init__


def _mentioned(config: Config, model: AbstractRecommender) -> Names:
    """The names in a checkpoint of this student that is written now."""
    content = {
        "config": config,
        "best_valid_score": [0.0, np.float64(0), np.float32(0)],
        "state_dict": model.state_dict(),
        "other_parameter": model.other_parameter(),
        "optimizer": torch.optim.Adam(model.parameters()).state_dict(),
    }
    stream = BytesIO()
    torch.save(content, stream, pickle_protocol=4)
    stream.seek(0)
    names: Names = set()
    _load(stream, "cpu", names, "model", note=True)
    return names


def _load(source: Path | BytesIO, device: Any, names: Names, what: str, note: bool = False) -> Any:
    """note: add the names to the set, where the bytes are this process's own, in place of refusing others."""

    class Listed(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if note:
                names.add((module, name))
            elif (module, name) not in names:
                raise UserError(
                    f"{source} is rejected because it refers to {module}.{name}, which no checkpoint of this {what} "
                    f"does: train the {what} again."
                )
            return super().find_class(module, name)

    return torch.load(source, map_location=device, pickle_module=_reader(Listed), weights_only=False)


def _reader(unpickler: type[pickle.Unpickler]) -> Any:
    """What torch.load takes in place of the module `pickle`."""

    def load(file: Any, **more: Any) -> Any:  # what torch calls for files of its older kind
        return unpickler(file, **more).load()

    return SimpleNamespace(Unpickler=unpickler, load=load, __name__="pickle")
