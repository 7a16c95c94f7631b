"""A file of lists, written in parts: memory does not grow with users, and a killed run goes on after the last part.

While it is written, a folder `.<name>.parts` beside the file holds the finished parts, and `progress.json` with what
they belong to and a checksum of each. At the end they become one file, which appears at once.
"""

import shutil
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recbole_prmkd.errors import UserError
from recbole_prmkd.storage.disk import remove, replacing, writing
from recbole_prmkd.storage.json_files import as_json, read_sealed, write_sealed
from recbole_prmkd.storage.store import file_digest

SUFFIXES = (".parquet", ".csv")
SCHEMA = pa.schema([("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string()), ("score", pa.float32())])
_PROGRESS = "progress.json"


class ListFile:
    """The parts of one file; `done` are there already.

    Args:
        path: the file, .parquet or .csv.
        belongs_to: all that the lists depend on; parts of another run are made anew.
    Raises:
        UserError: another ending, or the folder cannot be written.
    """

    def __init__(self, path: Path, belongs_to: Mapping[str, Any]) -> None:
        check_output(path)
        self.path, self.belongs_to = path, as_json(belongs_to)
        self.folder = path.with_name(f".{path.name}.parts")
        self.checksums: list[str] = []
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._resume()
            self.folder.mkdir(exist_ok=True)

    @property
    def done(self) -> int:
        """Number of finished parts."""
        return len(self.checksums)

    def write(self, table: pa.Table) -> None:
        """Write the next part."""
        file = self._part(self.done)
        with replacing(file) as part:
            if file.suffix == ".csv":
                pyarrow.csv.write_csv(table, part, pyarrow.csv.WriteOptions(include_header=self.done == 0))
            else:
                pyarrow.parquet.write_table(table, part)
        self.checksums.append(file_digest(file))
        write_sealed(self.folder / _PROGRESS, {"belongs_to": self.belongs_to, "parts": self.checksums})

    def finish(self) -> None:
        """Make one file of the parts, and remove them."""
        parts = [self._part(number) for number in range(self.done)]
        with replacing(self.path) as target:
            if self.path.suffix == ".csv":
                with target.open("wb") as whole:
                    for part in parts:
                        with part.open("rb") as piece:
                            shutil.copyfileobj(piece, whole)
            else:
                with pyarrow.parquet.ParquetWriter(target, SCHEMA) as writer:
                    for part in parts:
                        file = pyarrow.parquet.ParquetFile(part)
                        for group in range(file.num_row_groups):
                            writer.write_table(file.read_row_group(group))
        remove(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:06d}{self.path.suffix}"

    def _resume(self) -> None:
        try:
            found = read_sealed(self.folder / _PROGRESS)
        except (OSError, ValueError):
            remove(self.folder)
            return
        if found["belongs_to"] != self.belongs_to:
            getLogger().warning(f"What an earlier run left in {self.folder} belongs to other lists: all are made anew.")
            remove(self.folder)
            return
        for number, checksum in enumerate(found["parts"]):
            file = self._part(number)
            if not file.is_file() or file_digest(file) != checksum:
                break
            self.checksums.append(checksum)
        if self.checksums:
            getLogger().warning(f"{self.path} goes on after part {self.done}, where an earlier run stopped.")


def check_output(path: Path) -> None:
    """Refuse a file that cannot be written as lists.

    Raises:
        UserError: with one sentence.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--output={path}: name a file that ends in {' or '.join(SUFFIXES)}.")
    if path.is_dir():
        raise UserError(f"--output={path} is a folder: name a file.")


def as_table(users: list[str], items: pa.Array, ids: np.ndarray, scores: np.ndarray) -> pa.Table:
    """The lists as lines: user, rank from 1 on, item, score.

    Args:
        users: [B] tokens. items: tokens by internal id.
        ids, scores: [B, K], best first; an id of 0 ends a list.
    """
    row, column = np.nonzero(ids)
    return pa.table(
        [
            pa.array(users, pa.string()).take(pa.array(row)),
            pa.array((column + 1).astype(np.int32)),
            items.take(pa.array(ids[row, column])),
            pa.array(scores[row, column].astype(np.float32)),
        ],
        schema=SCHEMA,
    )
