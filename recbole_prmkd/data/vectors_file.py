"""Vectors in an `.npz` file: arrays of tokens and one table `feat`, read without unpickling anything."""

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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


def usable(vectors: np.ndarray) -> tuple[Tensor, Tensor]:
    """Vectors in single precision, and which of them have a direction: [N, D] float32 and [N] bool.

    The others are made zero: they hold NaN or infinity, are zero, or their squares overflow or vanish.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        table = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32).copy())  # [N, D]
    square = table.square().sum(dim=1)  # [N]
    good = torch.isfinite(square) & (square > 0)
    table[~good] = 0
    return table, good


def usable_of(file: Path, vectors: np.ndarray) -> Tensor:
    """The same vectors of a file, after a warning that counts the unusable ones.

    Raises:
        UserError: all of them are.
    """
    table, good = usable(vectors)
    bad = len(good) - int(good.sum())
    kinds = "zero, not finite, or too large or small for single precision"
    if bad and bad == len(good):
        raise UserError(f"Every vector of the data set in {file} is {kinds}: make the vectors anew.")
    if bad:
        getLogger().warning(f"{file}: {bad} of {len(good)} vectors are {kinds} and do not count.")
    return table


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
    except UserError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds
        raise UserError(
            f"Cannot read {file} as an .npz of plain arrays ({error}): write it with "
            f"numpy.savez(file, {example}), tokens as strings."
        ) from error
