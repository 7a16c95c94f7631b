"""What a run keeps of its data set, so that its model is rebuilt where the data set is not: `data.safetensors`.

    data/...       the data set's tables as RecBole has read, filtered and numbered them (`recbole_host.dataset_copy`)
    weights/...    the model's weights; in a file that `--export --format=weights` has written
    metadata       settings and the rest of the data set as JSON, and a checksum of all of it

Nothing is pickled. The file is about as large as the interactions in binary form.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.data.dataset import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.dataset_copy import (
    CannotCopy,
    copy_config,
    copy_dataset,
    restored_config,
    restored_dataset,
)
from recbole_prmkd.results.provenance import package_versions
from recbole_prmkd.results.run_folder import DATA
from recbole_prmkd.storage import store
from recbole_prmkd.storage.disk import replacing

__all__ = ["DATA", "Kept", "keep_data", "read", "with_weights"]

SCHEMA = "recbole_prmkd/data/1"
_KEY = "recbole_prmkd"
_DATA, _WEIGHTS, _OTHERS = "data/", "weights/", "others/"
_keeps: ContextVar[bool] = ContextVar("keeps", default=True)
_MAX_HEADER = 90_000_000  # bytes of JSON; safetensors reads at most 100 MB


@dataclass(frozen=True)
class Kept:
    """The content of such a file, checked: tensors by name, and what the metadata hold."""

    tensors: Mapping[str, Tensor]
    content: Mapping[str, Any]
    file: Path

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's weights by name; none in a run's folder, where they are in the checkpoint."""
        return self._of(_WEIGHTS)

    @property
    def others(self) -> dict[str, Tensor]:
        """What the model keeps beside its weights (Pop's counts), where these are in the file."""
        return self._of(_OTHERS)

    def config(self) -> Config:
        """The settings of the run, for this machine.

        Raises:
            UserError: another version has written them.
        """
        try:
            return restored_config(self.content["config"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise self._unreadable(error) from error

    def dataset(self, config: Config) -> Dataset:
        """The data set as it was before it was split.

        Raises:
            UserError: another version has written it.
        """
        try:
            return restored_dataset(self._of(_DATA), self.content["dataset"], config)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise self._unreadable(error) from error

    def _of(self, start: str) -> dict[str, Tensor]:
        return {name.removeprefix(start): each for name, each in self.tensors.items() if name.startswith(start)}

    def _unreadable(self, error: Exception) -> UserError:
        versions = self.content.get("versions") or {}
        return UserError(
            f"{self.file} cannot be read ({type(error).__name__}: {error}): it was written with recbole_prmkd "
            f"{versions.get('recbole_prmkd')} and recbole {versions.get('recbole')}; use these, or train again."
        )


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Inside, runs keep no data set: of the many cells of a comparison it would add up."""
    token = _keeps.set(False)
    try:
        yield
    finally:
        _keeps.reset(token)


def keep_data(file: Path, config: Config, dataset: Dataset) -> None:
    """Write the file of a run; a data set that cannot be kept is logged as a warning, and there is no file.

    Inside `nothing_kept` there is none either.

    Args:
        dataset: as it was read, before it is split.
    Raises:
        UserError: the disk cannot be written.
    """
    if not _keeps.get():
        return
    try:
        tensors, content = copy_dataset(dataset)
        write(file, {_DATA + name: tensor for name, tensor in tensors.items()}, config, content)
    except CannotCopy as error:
        getLogger().warning(f"This run cannot be loaded without its data set later: {error}.")


def write(file: Path, tensors: Mapping[str, Tensor], config: Config, dataset: Any) -> None:
    """Write such a file at once or not at all.

    Args:
        tensors: by their whole names. dataset: the second part of `copy_dataset`.
    Raises:
        CannotCopy: the JSON is too large for the file's header. UserError: the disk cannot be written.
    """
    content = {"schema": SCHEMA, "config": copy_config(config), "dataset": dataset, "versions": package_versions()}
    _save(file, tensors, content)


def with_weights(
    kept: Kept, weights: Mapping[str, Tensor], file: Path, others: Mapping[str, Any] | None = None
) -> None:
    """Write the same data with the model's weights beside them, in one file.

    Args:
        others: what the model keeps beside its weights; tensors are written.

    Raises:
        UserError: the disk cannot be written.
    """
    named = {_WEIGHTS + name: each for name, each in weights.items()}
    named |= {_OTHERS + name: each for name, each in (others or {}).items() if isinstance(each, Tensor)}
    given = {name: each.detach().cpu().clone() for name, each in named.items()}
    _save(file, {**kept.tensors, **given}, kept.content)


def read(file: Path) -> Kept:
    """The content of such a file.

    Raises:
        UserError: it is missing, damaged, or of another kind or version.
    """
    if not file.is_file():
        raise UserError(f"There is no {file}: name a run's folder, or a file of --format=weights.")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, struct.error) as error:
        raise UserError(f"Cannot read {file} as safetensors ({error}): copy it again, or train again.") from error
    text = metadata.get(_KEY)
    if text is None:
        raise UserError(f"{file} holds no model of recbole_prmkd: name a run's folder, or a file of --format=weights.")
    if metadata.get("checksum") != _checksum(tensors, text):
        raise UserError(f"{file} is damaged, since its checksum differs: copy it again, or train again.")
    content = json.loads(text)
    if content.get("schema") != SCHEMA:
        raise UserError(
            f"{file} is of the schema {content.get('schema')}, and this version reads {SCHEMA}: use the version of "
            "recbole_prmkd that has written it."
        )
    return Kept(tensors, content, file)


def _save(file: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
    text = json.dumps(content)
    if len(text) > _MAX_HEADER:
        raise CannotCopy("its tables of names are too large for one file")
    with replacing(file) as part:
        save_file(dict(tensors), part, {_KEY: text, "checksum": _checksum(tensors, text)})


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    return store.digest([text, *(part for name in sorted(tensors) for part in (name, tensors[name]))])
