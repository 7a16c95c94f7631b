"""Which keys trials can change, and to which values: checked before Ray starts; each message names the key."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError
from recbole.utils import argument_list as host

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import keys
from recbole_prmkd.recbole_host.config import HostView
from recbole_prmkd.recbole_host.host_properties import hosts
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.tune.space import Domain

_TEACHERS = re.compile(
    rf"kd_({'|'.join(map(str.lower, [*TEACHERS, *hosts()]))})_|kd_(text|image|item_images|teacher_seed|teacher_refresh)"
    r"|kd_(window_context|encode_precision)$"
)
_DATA = {
    *host.dataset_arguments,
    *{"data_path", "dataset", "eval_args", "train_neg_sample_args", "repeatable", "encoding", "kd_protocol"},
}
_METRIC = {"metrics", "topk", "valid_metric", "valid_metric_bigger", "metric_decimal_place", "eval_step"}
_RUN = {"model", "gpu_id", "use_gpu", "worker", "state", "show_progress", "reproducibility", "device", "checkpoint_dir"}
_RUN |= {"kd_output_dir", "kd_cache_dir", "kd_teacher_dir", "kd_rebuild"}


def check_space(domains: Sequence[Domain], view: HostView) -> None:
    """Reject a search space that no trial could use.

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
        for value in domain.representatives:
            _check_value(domain.key, value, view.stock.get(domain.key))


def _check_key(key: str, stock: Mapping[str, Any]) -> None:
    legal = {*stock, *keys.key_table(), *host.training_arguments, "seed"}
    reason = None
    if _TEACHERS.match(key):
        reason = (
            "teachers and their caches are made once, before the trials; set it on the command line and run one sweep "
            "per value"
        )
    elif key in _DATA:
        reason = "all trials share the data; run one sweep per value"
    elif key in _METRIC:
        reason = "trials are compared by the same validation metric; set it on the command line"
    elif key in _RUN:
        reason = "it says where and how trials run; set it on the command line"
    if reason:
        raise UserError(f"{key} cannot be searched: {reason}.")
    if key not in legal:
        raise UserError(f"Unknown key {key!r} in the search space: {keys.nearest(key, legal)}.")


def _check_value(key: str, value: Any, default: Any) -> None:
    """A kd_ key by its own table; others must be of the type of RecBole's default, where there is one."""
    if key == "kd" or key.startswith("kd_"):
        try:
            keys.checked({key: value}, TEACHERS)
        except UserError as error:
            raise UserError(f"The search space of {key} is not legal: {error}") from error
    elif default is not None and value is not None:
        kind = float if type(default) is int and keys.REAL.search(key) else type(default)
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            raise UserError(
                f"The search space of {key} holds {value!r}: {error.errors()[0]['msg']} (RecBole's default is "
                f"{default!r})."
            ) from error
