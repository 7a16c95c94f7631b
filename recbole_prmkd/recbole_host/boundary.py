"""The boundary around a run: what RecBole raises because of the user's settings or files becomes one sentence.

A traceback of RecBole's says where its code gave up, not which setting or file was wrong. Here the sentence names the
settings that the exception speaks of; the traceback goes to a log file. An exception from any other code is a
programming error. It passes, with a note that names the log.
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
from recbole.config import Config
from recbole.utils import get_model

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.out_of_memory import is_out_of_memory, out_of_memory_sentence
from recbole_prmkd.storage.disk import is_fault

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
def whole_run(config: Config) -> Iterator[None]:
    """Around all that a run does; its steps name themselves with `recbole_errors`.

    Raises:
        UserError: what RecBole raised, or memory did not suffice. Other exceptions pass, with the place of a log.
    """
    try:
        with recbole_errors(f"run {config['model']} on {config['dataset']} with these settings", config):
            yield
    except UserError:
        raise
    except Exception as error:
        error.add_note(f"recbole_prmkd: This is a mistake in a program, not in the settings{_logged(error)}.")
        raise


@contextmanager
def recbole_errors(
    doing: str, config: Config, fault: Callable[[], str | None] = lambda: None, teacher: str | None = None
) -> Iterator[None]:
    """Turns RecBole's exceptions, and those of too little memory, into a UserError, and lets all others pass.

    Args:
        doing: what RecBole is to do, as in "RecBole cannot <doing>".
        config: the run's.
        fault: looks for what is wrong in the files that were read.
        teacher: whose step it is, so that its keys are named.
    Raises:
        UserError: with RecBole's words, the settings, and the file that holds the traceback.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            sentence = out_of_memory_sentence(doing, error, config, teacher)
        elif is_fault(error) or not _from_recbole(error, config["model"]):
            raise
        else:
            sentence = _found(doing, error, config, fault(), teacher)
        raise UserError(f"{sentence}{_logged(error)}.") from error


def _from_recbole(error: BaseException, model: str) -> bool:
    """Whether RecBole's code, or a library that it called, raised this: no code of ours or the user's came after it."""
    package = get_model(model).__module__.partition(".")[0]  # of the user's model, which may be an installed one
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [
        _is_own(frame.f_code.co_filename)
        or package == frame.f_globals.get("__name__", "").partition(".")[0] != "recbole"
        for frame in frames
    ]
    last_own = max((index for index, is_own in enumerate(own) if is_own), default=-1)
    return any(Path(frame.f_code.co_filename).is_relative_to(_RECBOLE) for frame in frames[last_own + 1 :])


def _is_own(file: str) -> bool:
    """Whether this package or the user has written the file: no library, and no generated or compiled code."""
    if not Path(file).is_absolute():
        return False
    return Path(file).is_relative_to(_OURS) or not any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)


def _found(doing: str, error: BaseException, config: Config, fault: str | None, teacher: str | None) -> str:
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
        named = blamed(error, config.external_config_dict, config.cmd_config_dict, config.internal_config_dict, teacher)
    if fault and (not matched or "no lines" in fault):
        return fault
    shown = f" ({', '.join(named)})" if named else ""
    return f"RecBole cannot {doing}, {type(error).__name__}: {said[:_MAX_SAID]}; {way_out}{shown}"


def blamed(
    error: BaseException,
    given: Mapping[str, Any],
    typed: Mapping[str, Any],
    defaults: Mapping[str, Any],
    teacher: str | None = None,
) -> list[str]:
    """The settings, `key = value`, that an exception of RecBole's most likely comes from.

    Those of which it names the key or quotes the value, and those of another type than their default; else those that
    the user has typed.

    Args:
        given: the user's settings; typed: those of them on the command line; defaults: RecBole's.
        teacher: whose step it was: RecBole speaks of `hidden_act` where the user has set `kd_unisrec_hidden_act`.
    """
    words = set(re.findall(r"[\w.@+-]+", f"{error} {_keys_read(error)}"))
    own = {key: value for key, value in given.items() if key not in ("model", "dataset", "config_files")}
    if teacher:
        prefix = f"kd_{teacher}_".lower()
        words |= {prefix + word.lower() for word in words}
        own = {key: value for key, value in own.items() if key.startswith(prefix)} or own
    likely = [
        key
        for key, value in own.items()
        if key in words
        or any(word in words for word in _quotable(value) if len(word) > 1 or key in typed)
        or _is_of_another_type(value, defaults.get(key))
    ]
    chosen = likely or [key for key in own if key in typed]
    return [_shown(key, own[key]) for key in chosen[:_MAX_NAMED]]


def _is_of_another_type(value: Any, default: Any) -> bool:
    """Whether the value cannot stand where the default stood; a whole number can stand for a fraction."""
    if value is None or default is None:
        return False
    numbers = (int, float) if isinstance(default, float) else int
    return not isinstance(value, numbers if isinstance(default, int | float) else type(default))


def _quotable(value: Any) -> list[str]:
    """What a sentence may quote of a value: it, or its parts."""
    if isinstance(value, dict):
        return [word for pair in value.items() for part in pair for word in _quotable(part)]
    if isinstance(value, list | tuple):
        return [word for part in value for word in _quotable(part)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _keys_read(error: BaseException) -> str:
    """The keys that RecBole's code, or a teacher's, reads in the lines that failed, as in config["key"]."""
    places = (str(_RECBOLE), str(_OURS / "teachers"))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(places)]
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
