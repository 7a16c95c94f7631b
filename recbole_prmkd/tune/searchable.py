"""Which keys a sweep may search, and with which values: checked before Ray starts, each refusal names the key."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import recbole
from recbole.utils import argument_list as host

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import keys
from recbole_prmkd.recbole_host.config import HostView
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.tune.space import Domain

# Keys that the teachers or their knowledge depend on: they are made once, before the trials.
_TEACHERS = re.compile(rf"kd_({'|'.join(map(str.lower, TEACHERS))})_|kd_(text|image|item_images|teacher_seed)")
_ALSO_TEACHERS = {"kd_window_context", "kd_encode_precision"}
_FILES = {"kd_output_dir", "kd_cache_dir", "kd_teacher_dir", "kd_rebuild"}
# Keys that data, split or metric depend on, which all trials share.
_DATA = {
    *host.dataset_arguments,
    *{"data_path", "dataset", "eval_args", "train_neg_sample_args", "repeatable", "encoding", "kd_protocol"},
}
_METRIC = {"metrics", "topk", "valid_metric", "valid_metric_bigger", "metric_decimal_place", "eval_step"}
_RUN = {"model", "gpu_id", "use_gpu", "worker", "state", "show_progress", "reproducibility", "device", "checkpoint_dir"}
_PROPERTIES = Path(recbole.__file__).parent / "properties"
_REAL = re.compile(r"(weight|ratio|w_max|w_min)$")


def check_space(domains: Sequence[Domain], view: HostView) -> None:
    """Refuse a search space that no trial could use.

    Args:
        view: the fixed settings, and RecBole's properties for student and data set.
    Raises:
        UserError: a key that is unknown, belongs to what trials share, or would get a value that is not legal.
    """
    for domain in domains:
        _check_key(domain.key, view.stock)
        if domain.key in view.user:
            raise UserError(
                f"{domain.key} is in the search space and fixed to {view.user[domain.key]!r} too: leave one out."
            )
        for value in domain.witnesses:
            if domain.key == "kd" or domain.key.startswith("kd_"):
                _check_kd(domain.key, value)
            else:
                _check_type(domain.key, value, _default(domain.key, view))


def _check_key(key: str, stock: Mapping[str, Any]) -> None:
    if _TEACHERS.match(key) or key in _ALSO_TEACHERS:
        raise UserError(
            f"{key} cannot be searched: teachers and their knowledge are made once, before the trials; set it on the "
            "command line and run one sweep per value."
        )
    if key in _DATA:
        raise UserError(f"{key} cannot be searched: all trials share the data; run one sweep per value.")
    if key in _METRIC:
        raise UserError(f"{key} cannot be searched: trials are compared by the same validation metric.")
    if key in _RUN | _FILES:
        raise UserError(f"{key} cannot be searched: it says where and how trials run; set it on the command line.")
    legal = {*stock, *keys.key_table(), *host.training_arguments, "seed"}
    if key not in legal:
        raise UserError(f"Unknown key {key!r} in the search space: {keys.nearest(key, legal)}.")


def _check_kd(key: str, value: Any) -> None:
    try:
        keys.checked({key: value}, TEACHERS)
    except UserError as error:
        raise UserError(f"The search space of {key} is not legal: {error}") from error


def _default(key: str, view: HostView) -> Any:
    """RecBole's own default; as a float where it is written as a whole number and takes others.

    What RecBole's note beside it calls a float does, and so do weights and ratios, whatever it says (DCN's reg_weight).
    """
    default = view.stock.get(key)
    if not isinstance(default, int) or isinstance(default, bool):
        return default
    note = re.compile(rf"^{re.escape(key)}\s*:.*#\s*\(float\)", re.MULTILINE)
    files = [_PROPERTIES / "overall.yaml", _PROPERTIES / "model" / f"{view.model}.yaml"]
    noted = any(note.search(file.read_text(encoding="utf-8")) for file in files if file.is_file())
    return float(default) if noted or _REAL.search(key) else default


def _check_type(key: str, value: Any, default: Any) -> None:
    """The value must be of the kind that RecBole's own default has; where it has none, anything goes."""
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        (bool, "true or false"),
        (int, "a whole number"),
        ((int, float), "a number"),
        (str, "a text"),
        ((list, tuple), "a list"),
    ]
    for kind, words in kinds:
        if isinstance(default, kind):
            fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not fits and value is not None:
                raise UserError(
                    f"The search space of {key} holds {value!r}: {key} is {words} (RecBole's default: {default!r})."
                )
            return
