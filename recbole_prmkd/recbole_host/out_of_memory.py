"""What is said where memory does not suffice: what was being done, and which sizes to lower."""

import errno

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

    def growth(key: str) -> float:
        """How many times its default a size is."""
        size, default = sizes[key], defaults.get(key)
        return size / default if isinstance(size, int) and isinstance(default, int) and default else 1.0

    largest_first = sorted((key for key in sizes if sizes[key]), key=growth, reverse=True)
    named = ", ".join(f"{key} (now {str(sizes[key])[:20]})" for key in largest_first[:_NAMED])
    said = " ".join(str(error).split()).rstrip(".")[:_SAID]
    words = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return f"The memory does not suffice to {doing} ({words}): lower {named or 'the sizes in the settings'}"
