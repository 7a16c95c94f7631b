"""A student's checkpoint, which is RecBole's own pickle, read without running what somebody else has put into it.

The file may mention what a checkpoint of the same student mentions when this process writes one, and nothing else.
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

from recbole_prmkd.errors import UserError

Names = set[tuple[str, str]]


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

    def load(file: Any, **more: Any) -> Any:  # what torch calls for files of its older kind
        return Listed(file, **more).load()

    reader = SimpleNamespace(Unpickler=Listed, load=load, __name__="pickle")
    return torch.load(source, map_location=device, pickle_module=reader, weights_only=False)
