"""The user's YAML files: UTF-8 with a dict of plain values, checked before RecBole reads a config file."""

from datetime import date
from pathlib import Path
from typing import Any

import yaml

from recbole_prmkd.errors import UserError


def check_config_file(file: str, loader: Any) -> None:
    """Refuse a file that is no YAML dict of settings, with the line where it goes wrong.

    Args:
        loader: RecBole's YAML loader.
    Raises:
        UserError: names file, line and what to write.
    """
    try:
        content = read_yaml(Path(file), loader)
    except OSError as error:
        raise UserError(f"There is no config file {file!r} to read: check --config_files.") from error
    if not isinstance(content, dict):
        what = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{file} holds {what} in place of settings: write one `key: value` on each line.")
    if not _is_plain(content):  # such as !!python/name:os.system, which loads a function
        raise UserError(f"{file} holds a tag of Python's own (!!python/...): write plain values.")


def read_yaml(file: Path, loader: Any) -> Any:
    """What a YAML file of the user's holds.

    Raises:
        OSError: the file cannot be read.
        UserError: it is no YAML in UTF-8; names file and line.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=loader)
        _is_plain(content)  # a RecursionError where a value holds itself
        return content
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{file}, line {line}: it is not in UTF-8: save it in that encoding.") from error
    except OSError:
        raise
    except Exception as error:  # PyYAML has others than its own, such as ValueError for a date that is none
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        said = " ".join(str(getattr(error, "problem", None) or error or type(error).__name__).split())[:200]
        raise UserError(f"{file}{where} is no YAML: {said}; write one `key: value` on each line.") from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(part) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | complex | bytes | date)
