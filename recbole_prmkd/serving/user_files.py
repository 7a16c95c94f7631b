"""What a user of this package names: users by their tokens, and histories of item tokens.

    --users       a text file with a token in each line, or a table with a column user_id
    --histories   a table with the columns user_id and item_id, a line for each event, a user's oldest first; with a
                  column timestamp that decides the order
    --new_items   a table with the column item_id and those of the items' text
Tables are .parquet, .csv, or .tsv and RecBole's .inter and .item (separated by tabs, names such as user_id:token).
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from recbole_prmkd.errors import UserError

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t", ".item": "\t"}
_SHOWN = 10  # unknown tokens that are named


def read_users(file: Path) -> list[str]:
    """Tokens of users, each once, in the order of the file.

    Raises:
        UserError: it cannot be read, or has no user.
    """
    if file.suffix == ".parquet" or file.suffix in _SEPARATORS:
        users = _table(file, ["user_id"], "--users")["user_id"].tolist()
    else:
        try:
            users = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
        except (OSError, UnicodeError) as error:
            raise UserError(f"Cannot read --users={file}: {error}.") from error
    users = list(dict.fromkeys(users))
    if not users:
        raise UserError(f"--users={file} names no user: write a token in each line.")
    return users


def read_histories(file: Path) -> dict[str, list[str]]:
    """Item tokens of each user, newest last.

    Raises:
        UserError: it cannot be read, or has no event.
    """
    table = _table(file, ["user_id", "item_id"], "--histories")
    if "timestamp" in table:
        times = pd.to_numeric(table["timestamp"], errors="coerce")
        if times.isna().any():
            line = int(times.isna().to_numpy().argmax()) + 2
            raise UserError(
                f"--histories={file}, line {line}: the timestamp is no number; write numbers, or leave it out."
            )
        table = table.iloc[times.to_numpy().argsort(kind="stable")]
    if table.empty:
        raise UserError(f"--histories={file} has no events: write a line for each event.")
    return {str(user): items.tolist() for user, items in table.groupby("user_id", sort=False)["item_id"]}


def read_items(file: Path, fields: Sequence[str]) -> pd.DataFrame:
    """Items by their tokens with these columns of text.

    Raises:
        UserError: it cannot be read.
    """
    return _table(file, ["item_id", *fields], "--new_items", quotes=False)


def known_only(tokens: Iterable[str], ids: Mapping[str, int], what: str) -> tuple[list[str], str | None]:
    """The tokens that have an id, and what to say of the others."""
    given = list(tokens)
    found = [token for token in given if token in ids]
    unknown = list(dict.fromkeys(token for token in given if token not in ids))
    if not unknown:
        return found, None
    more = ", ..." if len(unknown) > _SHOWN else ""
    return found, f"{len(unknown)} unknown {what} left out: {', '.join(map(repr, unknown[:_SHOWN]))}{more}."


def _table(file: Path, columns: Sequence[str], option: str, quotes: bool = True) -> pd.DataFrame:
    """The table with all its cells as text, what is missing as an empty one.

    quotes: whether they hold a cell together between tabs too; between commas they do.
    """
    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file)
            table = table.astype(str).where(table.notna(), "")
        elif file.suffix in _SEPARATORS:
            separator = _SEPARATORS[file.suffix]
            plain = not quotes and separator == "\t"
            table = pd.read_csv(
                file,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
            ).fillna("")  # a line may end before its last cell
        else:
            raise UserError(f"{option}={file}: name a table that ends in .parquet, .csv, .tsv, .inter or .item.")
    except UserError:
        raise
    except Exception as error:  # pandas and pyarrow raise a dozen kinds
        words = " ".join(str(error).split())[:200]
        raise UserError(f"Cannot read {option}={file} as a table: {words}.") from error
    table.columns = [str(name).partition(":")[0] for name in table.columns]
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(
            f"{option}={file} has no column {' and no '.join(missing)} (it has {', '.join(table.columns)}): name the "
            f"columns {', '.join(columns)} in its first line."
        )
    return table
