"""Vectors in an `.npz` file: arrays of tokens and one table `feat`, read without unpickling anything."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recbole_prmkd.errors import UserError


def check_file(file: Path, ids: Sequence[str]) -> None:
    """A look at the names in the file, without reading it.

    Raises:
        UserError: it cannot be read, or lacks an array.
    """
    _arrays(file, ids, ())


def read_file(file: Path, ids: Sequence[str]) -> tuple[list[list[str]], np.ndarray]:
    """Tokens of each array in `ids` [N] and the vectors [N, D].

    Raises:
        UserError: it cannot be read, lacks an array, or holds one of another kind or size.
    """
    *tokens, features = _arrays(file, ids, (*ids, "feat"))
    for name, array in zip(ids, tokens, strict=True):
        fits = array.dtype.kind in "Uiu" and array.ndim == 1 and features.ndim == 2 and len(array) == len(features)
        if not fits or features.dtype.kind not in "fiu":
            raise UserError(
                f"{file}: {name} must be a list of strings and feat a table of numbers with as many rows, not "
                f"{array.dtype} {array.shape} and {features.dtype} {features.shape}: write the file again."
            )
    return [[str(token) for token in array.tolist()] for array in tokens], features


def _arrays(file: Path, ids: Sequence[str], names: Sequence[str]) -> list[np.ndarray]:
    """These arrays of the file, after a look that it has all that we want."""
    wanted = (*ids, "feat")
    example = ", ".join(f"{name}=..." for name in wanted)
    try:
        with np.load(file, allow_pickle=False) as archive:
            missing = [name for name in wanted if name not in archive.files]
            if missing:
                raise UserError(
                    f"{file} has no array {' and no '.join(missing)} (it has {', '.join(archive.files)}): "
                    f"write it with numpy.savez(file, {example})."
                )
            return [archive[name] for name in names]
    # TypeError: a single array, which numpy loads whatever the file is called, cannot be entered.
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise UserError(
            f"Cannot read {file} as an .npz of plain arrays ({error}): write it with "
            f"numpy.savez(file, {example}), tokens as strings."
        ) from error
