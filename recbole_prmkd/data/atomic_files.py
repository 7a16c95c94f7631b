"""RecBole's atomic files: their headers, of which a column is `name:type`, and the hash of all of a data set's."""

from pathlib import Path

from recbole_prmkd.storage import store

# RecBole's, and those of UniSRec's processed folders.
_READ = {".inter", ".item", ".user", ".kg", ".link", ".net", ".text", ".item2index", ".feat1CLS"}


def columns(file: Path, separator: str | None, encoding: str | None) -> dict[str, str]:
    """Type of each column by its name, in the file's order; '' where the header gives none.

    Args:
        separator, encoding: RecBole's keys `field_separator` and `encoding`; None: its defaults.
    Raises:
        OSError, UnicodeError: the file cannot be read.
    """
    with file.open(encoding=encoding or "utf-8") as lines:
        header = lines.readline().rstrip("\r\n").split(separator or "\t")
    return {name: kind for name, _, kind in (column.partition(":") for column in header)}


def digest(folder: Path, dataset: str) -> str:
    """sha256 (hex) of the names and bytes of a data set's files: interactions and side information."""
    files = sorted(file for file in folder.glob(f"{dataset}.*") if file.suffix in _READ and file.is_file())
    return store.digest([(file.name, store.file_digest(file)) for file in files])
