"""Headers of RecBole's atomic files: a column is `name:type`."""

from pathlib import Path


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
