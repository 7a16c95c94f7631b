"""Data sets in UniSRec's processed layout, read as they are:

<D>.{train,valid,test}.inter   user_id, item_id_list, item_id; items are numbers from 0, as strings
<D>.text                       header, then raw item id and text
<D>.item2index                 no header: raw item id and its number
<D>.feat1CLS                   no header: float32 [n_items, D], row = number; .feat2CLS: of texts with words dropped
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_prmkd.data.vectors_file import usable_of
from recbole_prmkd.errors import UserError

PARTS = ["train", "valid", "test"]
HISTORY = "item_id_list"
TEXT_FIELD = "text"
READY = "feat1CLS"


def is_processed(folder: Path, name: str) -> bool:
    """Whether the data set lies there in this layout (and not as one RecBole file)."""
    file = folder / f"{name}.train.inter"
    if (folder / f"{name}.inter").is_file() or not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as lines:  # RecBole's reading finds what is wrong with it
        return HISTORY in lines.readline()


def recbole_settings(sequential: bool) -> dict[str, Any]:
    """RecBole's settings that read the interactions; models other than sequential ones leave histories out."""
    settings: dict[str, Any] = {
        "benchmark_filename": PARTS,
        "alias_of_item_id": [HISTORY],
        "load_col": {"inter": ["user_id", HISTORY, "item_id"]},
    }
    return settings if sequential else {**settings, "unused_col": {"inter": [HISTORY]}}


def texts(folder: Path, name: str) -> dict[str, str]:
    """Item number, as a string -> its text.

    Raises:
        UserError: a file is missing or damaged.
    """
    number_of = _pairs(folder / f"{name}.item2index")
    raw = _pairs(folder / f"{name}.text", header=True)
    return {number_of[item]: text for item, text in raw.items() if item in number_of}


def has_vectors(folder: Path, name: str) -> bool:
    """Whether ready text vectors lie there."""
    return (folder / f"{name}.{READY}").is_file()


def vectors(folder: Path, name: str, tokens: Sequence[str], dropped_words: bool = False) -> np.ndarray:
    """Ready text vectors of these items, [len(tokens), D] float32.

    Args:
        dropped_words: those of the texts with words dropped.
    Raises:
        UserError: no such file, one whose size does not fit the items, or no vector that can be used.
    """
    file = folder / f"{name}.{'feat2CLS' if dropped_words else READY}"
    rows = len(_pairs(folder / f"{name}.item2index"))
    try:
        numbers = np.fromfile(file, dtype="<f4")
    except OSError as error:
        raise UserError(f"Cannot read {file}: put it there, or pre-train with --item_drop_share=1.") from error
    if rows == 0 or len(numbers) == 0 or len(numbers) % rows:
        raise UserError(f"{file} holds {len(numbers)} numbers, which is no whole number for each of {rows} items.")
    table = numbers.reshape(rows, -1)
    index = [int(token) if token.isdigit() else -1 for token in tokens]
    odd = [token for token, i in zip(tokens, index, strict=True) if not 0 <= i < rows]
    if odd:
        raise UserError(f"{file} has {rows} rows, but the data set has an item {odd[0]!r}: they do not match.")
    return usable_of(file, table[index]).numpy()


def _pairs(file: Path, header: bool = False) -> Mapping[str, str]:
    """First and second column of a file."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise UserError(f"Cannot read {file}, which belongs to a data set in UniSRec's layout: {error}.") from error
    rows = [line.split("\t", 1) for line in lines[int(header) :] if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise UserError(f"{file} has a line without a tab: it must hold an id, a tab and its value in each line.")
    return {first: second.rstrip("\r") for first, second in rows}
