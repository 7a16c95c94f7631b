"""The boundary around what RecBole does before training and in the first epoch: its exceptions become one sentence.

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
from recbole.config import Config

from recbole_prmkd.errors import UserError

_RECBOLE = Path(recbole.__file__).parent
_OURS = Path(__file__).parents[1]
_PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
_LIBRARIES = [*(Path(sysconfig.get_path(place)) for place in _PLACES), _RECBOLE.parent]
_MAX_SAID = 200  # characters of RecBole's own words, and of a value
_MAX_NAMED = 8  # settings
# What RecBole says: the way out, and the keys that it may lie in, of which one must be set.
_WAYS_OUT = {
    "Some feat is empty": (
        "the filters leave no interaction, user or item: widen them",
        ["user_inter_num_interval", "item_inter_num_interval", "val_interval", "load_col", "unload_col", "data_path"],
    ),
    "have interacted with all items": (
        "a user has interacted with every item, so that there is no negative to sample: take a data set with more "
        "items, or leave negative sampling out",
        ["train_neg_sample_args", "eval_args"],
    ),
    "not defined in dataset": ("load each column that is filtered by", ["val_interval"]),
    "num_samples should be": (
        "the training split is empty: lower the filters, or change the split",
        ["eval_args", "user_inter_num_interval", "item_inter_num_interval", "val_interval"],
    ),
    "batch_size should be": ("write a whole number above 0", ["train_batch_size", "eval_batch_size"]),
    "dl_format [None]": ("write loss_type=CE or loss_type=BPR", ["loss_type"]),
    "faiss::Clustering": ("write a number below those of users and items", ["num_clusters"]),
    "oss is nan": ("lower the learning rate", ["learning_rate"]),
}


@contextmanager
def recbole_errors(
    doing: str,
    config: Config,
    fault: Callable[[], str | None] = lambda: None,
    passes: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Turns RecBole's exceptions into a UserError, and lets all others pass.

    Args:
        doing: what RecBole is to do, as in "RecBole cannot <doing>".
        fault: looks for what is wrong in the files that were read.
        passes: whether it is too late for bad input by now.
    Raises:
        UserError: with RecBole's words, the settings, and the file that holds the traceback.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if passes() or not _from_recbole(error):
            raise
        raise UserError(f"{_found(doing, error, config, fault())}{_logged(error)}.") from error


def _from_recbole(error: BaseException) -> bool:
    """Whether RecBole's code, or a library that it called, raised this: no code of ours or the user's came after it."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    last_own = max((index for index, file in enumerate(files) if _is_own(file)), default=-1)
    return any(Path(file).is_relative_to(_RECBOLE) for file in files[last_own + 1 :])


def _is_own(file: str) -> bool:
    """Whether this package or the user has written the file: no library, and no generated or compiled code."""
    if not Path(file).is_absolute():
        return False
    return Path(file).is_relative_to(_OURS) or not any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)


def _found(doing: str, error: BaseException, config: Config, fault: str | None) -> str:
    """The fault in the files, or RecBole's words with the way out and the settings to look at."""
    said = " ".join(str(error).split()).rstrip(".")
    matched = next((ways for words, ways in _WAYS_OUT.items() if words in said), None)
    way_out, named = "check the data set's files and the settings", []
    if matched:
        set_keys = [key for key in matched[1] if config[key] is not None]
        own = [key for key in set_keys if key in config.external_config_dict]
        named = [_shown(key, config[key]) for key in own or set_keys]
    if matched and named:
        way_out = matched[0]
    else:
        named = blamed(error, config.external_config_dict, config.cmd_config_dict)
    if fault and (not matched or "no lines" in fault):
        return fault
    shown = f" ({', '.join(named)})" if named else ""
    return f"RecBole cannot {doing}, {type(error).__name__}: {said[:_MAX_SAID]}; {way_out}{shown}"


def blamed(error: BaseException, given: Mapping[str, Any], typed: Mapping[str, Any]) -> list[str]:
    """The settings, `key = value`, that an exception of RecBole's most likely comes from.

    Those of which it names the key or quotes the value; else those that the user has typed.

    Args:
        given: the user's settings; typed: those of them on the command line.
    """
    words = set(re.findall(r"[\w.@+-]+", f"{error} {_keys_read(error)}"))
    own = {key: value for key, value in given.items() if key not in ("model", "dataset", "config_files")}
    quoted = [
        key
        for key, value in own.items()
        if key in words or any(word in words for word in _quotable(value) if len(word) > 1 or key in typed)
    ]
    chosen = quoted or [key for key in own if key in typed]
    return [_shown(key, own[key]) for key in chosen[:_MAX_NAMED]]


def _quotable(value: Any) -> list[str]:
    """What a sentence may quote of a value: it, or its parts."""
    if isinstance(value, dict):
        return [word for pair in value.items() for part in pair for word in _quotable(part)]
    if isinstance(value, list | tuple):
        return [word for part in value for word in _quotable(part)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _keys_read(error: BaseException) -> str:
    """The keys that RecBole's code reads in the lines that failed, as in config["key"]."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(_RECBOLE))]
    return " ".join(key for frame in frames for key in re.findall(r"""config\w*\[["'](\w+)["']\]""", frame.line or ""))


def _shown(key: str, value: Any) -> str:
    return f"{key} = {value!r}"[:_MAX_SAID]


def _logged(error: BaseException) -> str:
    """Write the traceback to a new log file in the system's folder for temporary files; what to say of it."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="recbole_prmkd-", suffix=".log", delete=False) as log:
            log.write("".join(traceback.format_exception(error)).encode("ascii", "backslashreplace").decode())
    except OSError:  # the sentence stands without it
        return ""
    return f" (traceback: {log.name})"
