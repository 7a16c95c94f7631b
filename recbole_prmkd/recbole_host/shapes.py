"""What the values of RecBole's own settings must look like. RecBole checks few of them, and fails far from the cause.

Only what it cannot use is refused. A value that it takes for another one than it looks like gets a warning.
"""

import re
from collections.abc import Iterator, Mapping
from logging import getLogger
from typing import Any

from recbole_prmkd.errors import UserError

_DICT = ((dict,), "a dict, such as {example}")
_LIST = ((list, tuple), "a list, such as {example}")
_NAME = ((str,), "a text, such as {example}")
_SHAPES: dict[str, tuple[tuple[tuple[type, ...], str], str]] = {
    **dict.fromkeys(
        ("load_col", "unload_col", "unused_col"), (_DICT, "{'inter': ['user_id', 'item_id', 'timestamp']}")
    ),
    "val_interval": (_DICT, "{'rating': '[3,inf)'}"),
    "threshold": (_DICT, "{'rating': 3}"),
    "eval_args": (_DICT, "{'split': {'LS': 'valid_and_test'}, 'order': 'TO', 'mode': 'full'}"),
    "seq_len": (_DICT, "{'title': 10}"),
    "preload_weight": (_DICT, "{'ent_id': 'ent_emb'}"),
    "discretization": (_DICT, "{'price': {'method': 'ED', 'bucket': 10}}"),
    "benchmark_filename": (_LIST, "['train','valid','test']"),
    "normalize_field": (_LIST, "['rating']"),
    "numerical_features": (_LIST, "['price']"),
    **dict.fromkeys(
        ("alias_of_user_id", "alias_of_item_id", "alias_of_entity_id", "alias_of_relation_id"), (_LIST, "['friend_id']")
    ),
    **dict.fromkeys(("enable_amp", "enable_scaler"), (((bool,), "{example}"), "True or False")),
    "valid_metric": (_NAME, "NDCG@10"),
    "state": (_NAME, "INFO"),
    "learner": (_NAME, "adam"),
    "loss_type": (_NAME, "CE"),
    "metrics": (((str, list, tuple), "a list of names, such as {example}"), "['NDCG', 'Recall']"),
    **dict.fromkeys(("data_path", "checkpoint_dir"), (_NAME, "my_folder")),
    **dict.fromkeys(("encoding", "field_separator", "seq_separator"), (_NAME, "utf-8, or a quoted character")),
    **dict.fromkeys(
        ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "RATING_FIELD", "LABEL_FIELD"), (_NAME, "user_id")
    ),
    **dict.fromkeys(("ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD"), (_NAME, "item_length")),
    **dict.fromkeys(("LIST_SUFFIX", "NEG_PREFIX"), (_NAME, "_list or neg_")),
}
_MOST_WORKERS = 1024
_COUNTS = ("user_inter_num_interval", "item_inter_num_interval")


def check_settings(user: Mapping[str, Any], stock: Mapping[str, Any]) -> None:
    """Refuse values that RecBole cannot use; warn of a text where RecBole wants True or False.

    Args:
        user: the user's settings; stock: RecBole's defaults for the model and data set.
    Raises:
        UserError: names key, value and what to write.
    """
    for key, value in user.items():
        if not isinstance(key, str):
            raise UserError(f"The settings hold a key {key!r} that is no text: write it in quotes, or leave it out.")
        if value is not None:
            _check_value(key, value, stock.get(key))
    _check_lists(user)
    _check_columns(user)
    _check_intervals(user)
    seed = user.get("seed", 0)
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed = {seed!r} is not a whole number from 0 to 4294967295: write one.")
    worker = user.get("worker") or 0
    if isinstance(worker, int) and worker > _MOST_WORKERS:
        raise UserError(
            f"worker = {worker} is a number of processes: write 0, or at most the number of the CPU's cores."
        )
    # RecBole's KD_DAGFM hands this name to `eval`.
    if not str(user.get("teacher") or "x").isidentifier():
        raise UserError(f"teacher = {user['teacher']!r} is not the name of a class of RecBole's, such as CrossNet.")


def check_plain(settings: Mapping[Any, Any]) -> None:
    """Refuse what no file or array can hold: a text with a byte that is no character, a whole number beyond 64 bits.

    Raises:
        UserError: names the key.
    """
    for key, value in settings.items():
        for part in _parts_of([key, value]):
            if isinstance(part, int) and not -(2**63) <= part < 2**63:
                raise UserError(
                    f"{key} = {value!r} holds a number that does not fit into 64 bits: write a smaller one."
                )
            try:
                f"{part}".encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{key!a} holds {part[error.start]!a}, which is no character: write it in UTF-8."
                ) from error


def _parts_of(value: Any) -> Iterator[Any]:
    """The texts and numbers that a value is made of."""
    if isinstance(value, dict | list | tuple):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _parts_of(part)
    else:
        yield value


def _check_value(key: str, value: Any, default: Any) -> None:
    (types, words), example = _SHAPES.get(key, (((object,), ""), ""))
    if not isinstance(value, types):
        raise UserError(f"{key} = {value!r} is not {words.replace('{example}', example)}.")
    if value == "" and key in ("LIST_SUFFIX", "field_separator"):
        raise UserError(f"{key} is empty: leave it out, or write at least one character.")
    if isinstance(value, str) and _is_number(default):
        raise UserError(f"{key} = {value!r} is not a number, such as its default {default!r}: write the number.")
    if isinstance(value, str) and isinstance(default, bool) and key != "use_gpu":
        getLogger().warning(f"{key} = {value!r} counts as {bool(value)} in RecBole: write True or False.")


def _check_lists(user: Mapping[str, Any]) -> None:
    metrics = user.get("metrics") or []
    if "metrics" in user and not (metrics and all(isinstance(name, str) for name in metrics)):
        raise UserError(f"metrics = {user['metrics']!r} names none: write a list of names, such as ['NDCG', 'Recall'].")


def _check_columns(user: Mapping[str, Any]) -> None:
    for key in ("load_col", "unload_col", "unused_col"):
        for source, columns in (user.get(key) or {}).items():
            if not isinstance(columns, list | tuple | set) and columns != "*":
                raise UserError(
                    f"{key} = {user[key]!r} has no list of columns for {source!r}: write {{'{source}': ['a', 'b']}}."
                )


def _check_intervals(user: Mapping[str, Any]) -> None:
    given = {key: user[key] for key in _COUNTS if user.get(key) is not None}
    values = user.get("val_interval") or {}
    given |= {
        f"val_interval of {field}": text for field, text in values.items() if not isinstance(text, list | tuple | set)
    }
    for key, text in given.items():
        if not all(map(_is_interval, str(text).split(";"))):
            raise UserError(
                f"{key} = {text!r} is not an interval whose ends are in order: write [5,inf), (0,10] or, for several, "
                "[1,2];[4,inf)."
            )


def _is_interval(text: str) -> bool:
    match = re.fullmatch(r"[\[(]([^,]+),([^,]+)[\])]", text.strip())
    try:
        return match is not None and float(match[1]) <= float(match[2])
    except ValueError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
