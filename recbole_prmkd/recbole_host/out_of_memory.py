"""What is said where memory does not suffice: what was being done, and which sizes to lower."""

import errno
import re
from typing import Any

import torch
from recbole.config import Config

from recbole_prmkd.recbole_host.keys import has_teachers, teacher_settings

_SIZES = (
    *("train_batch_size", "eval_batch_size", "max_item_list_length", "hidden_size", "embedding_size", "inner_size"),
    *("mlp_hidden_size", "n_layers", "n_exps", "max_token_num", "encode_batch_tokens", "negatives"),
)
_SIZES_OF_KD = ("kd_max_rows", "kd_max_candidates", "kd_pair_candidates", "kd_top_items")
_WORDS = (
    *("not enough memory", "DefaultCPUAllocator", "allocate memory", "out of memory", "ALLOC_FAILED"),
    *("Storage size calculation overflowed", "array is too big", "Maximum allowed dimension"),
)
_NAMED = 6  # sizes
_LARGE = 100  # times its default: a setting with such a number counts as a size, whatever its name
_NOT_SIZES = ("model", "dataset", "seed")
_SHOWN = 120  # characters of a value
_SAID = 200  # characters of the library's own words


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the memory of the machine or of its GPU was too small for what was asked of it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError | ValueError) and any(words in str(error) for words in _WORDS)
    )


def out_of_memory_sentence(doing: str, error: BaseException, config: Config, teacher: str | None = None) -> str:
    """One sentence without its full stop: the keys are those of the teacher whose step it was, or of the whole run.

    Args:
        doing: as in "the memory does not suffice to <doing>".
    """
    settings, defaults = config.final_config_dict, dict(config.internal_config_dict)
    if teacher is not None:
        prefix, own = f"kd_{teacher}_".lower(), teacher_settings(teacher, settings)
        sizes = {prefix + key.lower(): value for key, value in own.items() if key.lower() in _SIZES}
        sizes["eval_batch_size"] = settings["eval_batch_size"]
        defaults |= {prefix + key.lower(): value for key, value in teacher_settings(teacher, {}).items()}
    else:
        wanted = (*_SIZES, *(_SIZES_OF_KD if config["kd"] is not None and has_teachers(config) else ()))
        sizes = {key: value for key, value in settings.items() if key.lower() in wanted}
        given = {key: settings[key] for key in config.external_config_dict if key in settings and key not in _NOT_SIZES}
        sizes |= {key: value for key, value in given.items() if _growth(value, defaults.get(key)) > _LARGE}

    def growth(key: str) -> float:
        return _growth(sizes[key], defaults.get(key))

    largest_first = sorted((key for key in sizes if sizes[key]), key=growth, reverse=True)
    named = ", ".join(f"{key} (now {str(sizes[key])[:_SHOWN]})" for key in largest_first[:_NAMED])
    said = " ".join(str(error).split()).rstrip(".")[:_SAID]
    words = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"The memory does not suffice to {doing} ({words}): lower {named or 'the sizes in the settings'}"


def _growth(size: Any, default: Any) -> float:
    """How many times its default a size is, by the largest number in each."""
    return _largest(size) / max(1, _largest(default))


def _largest(value: Any) -> int:
    """The largest whole number in a setting and its parts; that of uni100 is 100."""
    if isinstance(value, dict | list | tuple):
        return max(map(_largest, value.values() if isinstance(value, dict) else value), default=1)
    sampled = re.fullmatch(r"(?:uni|pop)(\d{1,300})", value) if isinstance(value, str) else None
    return int(sampled[1]) if sampled else value if isinstance(value, int) else 1
