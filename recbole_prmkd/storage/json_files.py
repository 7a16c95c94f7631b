"""JSON on disk: written at once or not at all, and with a checksum where a later run trusts it.

A file with a checksum holds, as its last entry, the sha256 of all its other entries as they are written here. Reading
compares every byte, so that no flipped bit is taken for content.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from recbole_prmkd.storage.disk import replacing

CHECKSUM = "checksum"


def as_json(content: Any) -> Any:
    """What is left of it when it has been written as JSON and read again."""
    return json.loads(json.dumps(content, default=str))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: beside the target, flushed, then renamed.

    Raises:
        UserError: the file cannot be written.
    """
    _write(path, _text(content))


def read_json(path: Path) -> Any:
    """The content of a JSON file that anybody may have written.

    Raises:
        OSError: it cannot be read. ValueError: it is no JSON, or nested too deeply.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is no file")  # opening a pipe would wait for ever
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """The same with a checksum.

    Raises:
        UserError: the file cannot be written.
    """
    _write(path, _sealed(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` was given, as JSON holds it.

    Raises:
        OSError: it cannot be read. ValueError: it is not, byte for byte, what was written.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    if path.read_bytes() != _sealed(content).encode():
        raise ValueError(f"the checksum of {path.name} differs")
    del content[CHECKSUM]
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The same of a file that an earlier version may have written without a checksum.

    Raises:
        OSError: it cannot be read. ValueError: it is no object, or not what was written.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds no object")
    last = next(reversed(content), CHECKSUM)
    if CHECKSUM in content or re.fullmatch("[0-9a-f]{64}", str(content.get(last))):  # by a damaged name
        return read_sealed(path)
    return content


def _text(content: Any) -> str:
    return json.dumps(content, indent=2, default=str) + "\n"


def _sealed(content: dict[str, Any]) -> str:
    plain = as_json({key: value for key, value in content.items() if key != CHECKSUM})
    return _text({**plain, CHECKSUM: hashlib.sha256(_text(plain).encode()).hexdigest()})


def _write(path: Path, text: str) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
