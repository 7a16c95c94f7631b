"""RecBole's atomic files: their headers, of which a column is `name:type`, and the hash of all of a data set's."""

import codecs
import glob
from pathlib import Path

from recbole.utils import FeatureType

from recbole_prmkd.storage import store

# RecBole's, and those of UniSRec's processed folders.
_READ = {".inter", ".item", ".user", ".kg", ".link", ".net", ".text", ".item2index", ".feat1CLS"}
_ATOMIC = {".inter", ".item", ".user", ".kg", ".link", ".net"}
_KINDS = [kind.value for kind in FeatureType]
_TIME = "time"  # for the type of the column of times
# What pandas reads as missing.
_MISSING = {"", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}


def columns(file: Path, separator: str | None, encoding: str | None) -> dict[str, str]:
    """Type of each column by its name, in the file's order; '' where the header gives none.

    Args:
        separator, encoding: RecBole's keys `field_separator` and `encoding`; None: its defaults.
    Raises:
        OSError, UnicodeError: the file cannot be read.
        LookupError: there is no such encoding.
    """
    with file.open(encoding=encoding or "utf-8") as lines:
        header = lines.readline().rstrip("\r\n").split(separator or "\t")
    return {name: kind for name, _, kind in (column.partition(":") for column in header)}


def fault_of(
    folder: Path,
    dataset: str,
    separator: str | None,
    encoding: str | None,
    time: str | None = None,
    reads_dates: bool = False,
) -> str | None:
    """The first fault in the data set's atomic files, interactions first; None where there is none.

    Args:
        time, reads_dates: see `fault`.
    """
    files = [file for file in _files(folder, dataset) if file.suffix in _ATOMIC]
    for file in sorted(files, key=lambda file: (file.suffix != ".inter", file.name)):
        if found := fault(file, separator, encoding, time if file.suffix == ".inter" else None, reads_dates):
            return found
    return None


def fault(
    file: Path, separator: str | None, encoding: str | None, time: str | None = None, reads_dates: bool = False
) -> str | None:
    """The first thing in an atomic file that RecBole cannot read, with its line, and the way out; None where none.

    Read after RecBole has failed: it names no line, and no file.

    Args:
        time: name of the column of times. reads_dates: whether it may hold dates in words, checked elsewhere.
    """
    separator, encoding = separator or "\t", encoding or "utf-8"
    kinds: list[str] = []
    number = 0
    with file.open("rb") as lines:
        if lines.read(4).startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and "16" not in encoding:
            return f"{file} is in UTF-16: save it as UTF-8, or give --encoding=utf-16"
    try:
        with file.open(encoding=encoding, newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                cells = line.rstrip("\r\n").split(separator)
                said = _header_fault(cells) if number == 1 else _line_fault(cells, kinds)
                if said:
                    return f"{file}, line {number}: {said}"
                if number == 1:
                    kinds = [_kind(cell, time, reads_dates) for cell in cells]
    except UnicodeError:
        return (
            f"{file}, line {_undecodable(file, encoding)}: it is not in {encoding}; name its encoding with --encoding"
        )
    return f"{file} has no lines below its header" if number < 2 else None


def _undecodable(file: Path, encoding: str) -> int:
    """Number of the first line whose bytes are not in the encoding."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return number
    return 1


def _kind(column: str, time: str | None, reads_dates: bool) -> str:
    """What a column of this header must hold: its type, or `time`, or nothing in particular."""
    name, _, kind = column.partition(":")
    if name != time or kind != "float":
        return kind
    return "" if reads_dates else _TIME


def _header_fault(cells: list[str]) -> str | None:
    names = [cell.partition(":")[0] for cell in cells]
    for cell, name in zip(cells, names, strict=True):
        kind = cell.partition(":")[2]
        if cell.startswith("\ufeff"):
            return "it begins with a byte order mark: give --encoding=utf-8-sig"
        if kind not in _KINDS:
            shown = f"column {cell!r} has the type {kind!r}" if kind else f"column {cell!r} has no type"
            return f"{shown}: write name:type, the type one of {', '.join(_KINDS)}"
        if names.count(name) > 1:
            return f"column {name!r} is there twice: give each its own name"
    return None


def _line_fault(cells: list[str], kinds: list[str]) -> str | None:
    if any(cell.startswith('"') and (len(cell) == 1 or not cell.endswith('"')) for cell in cells):
        return "a double quote opens a text that does not end in its cell: leave the quotes out"
    if len(cells) > len(kinds):
        return f"it has {len(cells)} cells, its header {len(kinds)}: check the separators"
    for cell, kind in zip(cells, kinds, strict=False):
        if kind == _TIME and not _is_number(cell):
            return (
                f"{cell!r} is in the column of times, whose type is float: write the number of seconds since 1970 "
                "there, or use --kd_protocol=ranking, which reads dates such as 2020-09-13T12:26:40"
            )
        if kind.startswith("float") and not all(map(_is_number, cell.split(" ") if kind == "float_seq" else [cell])):
            return f"{cell!r} is in a column of type {kind}: write a number there, or give the column the type token"
    return None


def _is_number(cell: str) -> bool:
    """Whether pandas reads it as a number or as missing."""
    try:
        float(cell.strip('"'))
    except ValueError:
        return cell.strip('"') in _MISSING
    return True


def digest(folder: Path, dataset: str) -> str:
    """sha256 (hex) of the names and bytes of a data set's files: interactions and side information."""
    files = sorted(_files(folder, dataset))
    return store.digest([(file.name, store.file_digest(file)) for file in files])


def _files(folder: Path, dataset: str) -> list[Path]:
    return [file for file in folder.glob(f"{glob.escape(dataset)}.*") if file.suffix in _READ and file.is_file()]
