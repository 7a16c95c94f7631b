"""The boundary around what RecBole does before training: its exceptions become one sentence.

A traceback of RecBole's says where its code gave up, not which setting or file was wrong. Here the sentence names the
settings that the exception speaks of; the traceback goes to a log file. An exception from any other code is a
programming error, and passes.
"""

import re
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import recbole
import torch

from recbole_prmkd.errors import UserError

_RECBOLE = Path(recbole.__file__).parent
_OURS = Path(__file__).parents[1]
_PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
_LIBRARIES = [*(Path(sysconfig.get_path(place)) for place in _PLACES), _RECBOLE.parent]
_MAX_SAID = 200  # characters of RecBole's own words
# What RecBole says, and the way out.
_WAYS_OUT = {
    "Some feat is empty": "its filters leave no interaction or no item: widen {filters}",
    "have interacted with all items": "a user has interacted with every item, so that there is no negative to sample: "
    "the data set needs more items, or leave negative sampling out",
    "not defined in dataset": "each column that val_interval names must be one of the data set's that load_col loads, "
    "so check {filters}",
    "num_samples should be": "the training split is empty: the users need more interactions, so lower the filters or "
    "change the split in eval_args",
    "batch_size should be a positive": "train_batch_size and eval_batch_size must be whole numbers above 0",
}
_FILTERS = ("user_inter_num_interval", "item_inter_num_interval", "val_interval", "load_col", "unload_col")


@contextmanager
def recbole_errors(
    doing: str, settings: Mapping[str, Any], fault: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Turns RecBole's exceptions into a UserError, and lets all others pass.

    Args:
        doing: what RecBole is to do, as in "RecBole cannot <doing>".
        settings: the user's settings, among which those that an exception speaks of are found.
        fault: looks for what is wrong in the files that were read.
    Raises:
        UserError: with RecBole's words, the settings, and the file that holds the traceback.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if not from_recbole(error):
            raise
        raise UserError(sentence(doing, error, settings, fault)) from error


def from_recbole(error: BaseException) -> bool:
    """Whether RecBole's code, or a library that it called, raised this: no code of ours or the user's came after it."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    last_own = max((index for index, file in enumerate(files) if _is_own(file)), default=-1)
    return any(Path(file).is_relative_to(_RECBOLE) for file in files[last_own + 1 :])


def _is_own(file: str) -> bool:
    """Whether this package or the user has written the file: no library, and no generated or compiled code."""
    if not Path(file).is_absolute():
        return False
    return Path(file).is_relative_to(_OURS) or not any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)


def sentence(
    doing: str, error: BaseException, settings: Mapping[str, Any], fault: Callable[[], str | None] = lambda: None
) -> str:
    """What to say of RecBole's exception; writes its traceback to a file, which the sentence names."""
    said = " ".join(str(error).split()).rstrip(".")
    log = f"(traceback: {write_traceback(error)})."
    found = fault()
    way_out = next((way for words, way in _WAYS_OUT.items() if words in said), None)
    if found and (way_out is None or "no lines" in found):
        return f"{found} {log}"
    if way_out is None:
        named = suspects(f"{said} {_failing_lines(error)}", settings)
        way_out = f"check {', '.join(named)}" if named else "check the settings and the data set's files"
    filters = [f"{key} = {settings[key]!r}" for key in _FILTERS if settings.get(key) is not None]
    way_out = way_out.replace("{filters}", ", ".join(filters) or "the filters")
    return f"RecBole cannot {doing}, {type(error).__name__}: {said[:_MAX_SAID]}; {way_out} {log}"


def suspects(said: str, settings: Mapping[str, Any]) -> list[str]:
    """The user's settings, `key = value`, that these words name by their key or quote by their value."""
    words = set(re.findall(r"[\w.@+-]+", said))
    return [
        f"{key} = {value!r}"[:_MAX_SAID]
        for key, value in settings.items()
        if key not in ("model", "dataset") and (key in words or not words.isdisjoint(_quotable(value)))
    ]


def _quotable(value: Any) -> list[str]:
    """What a sentence may quote of a value: it, or its parts; nothing of one letter or digit, which is in many."""
    if isinstance(value, dict):
        return [word for pair in value.items() for part in pair for word in _quotable(part)]
    if isinstance(value, list | tuple):
        return [word for part in value for word in _quotable(part)]
    return [str(value)] if value is not None and not isinstance(value, bool) and len(str(value)) > 1 else []


def _failing_lines(error: BaseException) -> str:
    """The keys that RecBole's code reads in the lines that failed: config["key"]."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(_RECBOLE) in frame.filename]
    return " ".join(" ".join(re.findall(r"""config\[["'](\w+)["']\]""", frame.line or "")) for frame in frames)


def write_traceback(error: BaseException) -> Path:
    """Write an exception's traceback to a new log file in the system's folder for temporary files."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="recbole_prmkd-", suffix=".log", delete=False, encoding="utf-8"
    ) as log:
        log.write("".join(traceback.format_exception(error)))
    return Path(log.name)
