"""Names that a user has chosen (data sets, folders), where they meet a language in which their signs mean something.

LaTeX and HTML have their own places: `compare.tables` and the template of the page.
"""

import re
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet knows one


def printable(text: str) -> str:
    """The text on one line, with a mark in place of what no file or page can hold (control signs, half characters)."""
    return "".join(sign if sign.isprintable() else " " if sign.isspace() else "\ufffd" for sign in text)


def for_figure(text: str) -> str:
    """For matplotlib, which reads formulas between dollar signs."""
    return printable(text).replace("$", r"\$")


def for_markdown(text: str) -> str:
    """For a cell or a line of Markdown."""
    return re.sub(r"([\\|`\[])", r"\\\1", printable(text)).replace("<", "&lt;")


def for_folder(text: str) -> str:
    """As a part of the name of a folder that is not the user's own choice."""
    return re.sub(r"[/\\\0]", "_", text)[:120]


def for_csv(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts no spreadsheet takes for formulas: these begin with an apostrophe."""

    def safe(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

    texts = [name for name, column in table.items() if not is_numeric_dtype(column)]
    return table.assign(**{str(name): table[name].map(safe) for name in texts}).rename(columns=safe)
