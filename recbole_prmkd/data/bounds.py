"""Bounds that only the data know, checked as soon as they are loaded and before anything expensive."""

from typing import Any

from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader
from recbole.evaluator.register import metric_information
from recbole.utils import EvaluatorType

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import has_teachers, teacher_settings
from recbole_prmkd.recbole_host.models import validates


def check_bounds(config: Config, item_num: int, valid: int = 1, test: int = 1) -> None:
    """Refuse a cut-off that is longer than the list of all items, the teachers' own cut-offs too.

    Args:
        item_num: number of items with PAD, which RecBole ranks too.
        valid, test: numbers of validation and test examples; stock RecBole takes any cut-off where it ranks neither.
    Raises:
        UserError: names the key, its value and the number of items.
    """
    uses = test or (valid and validates(config)) or config["kd"] != "none"  # teachers are ranked too
    ranked = uses and config["eval_type"] == EvaluatorType.RANKING and any(map(_has_cutoff, config["metrics"]))
    if ranked and max(config["topk"]) > item_num:
        raise _too_long("topk", config["topk"], item_num)
    for teacher in _teachers(config):
        metric = str(teacher_settings(teacher, config.final_config_dict).get("valid_metric"))
        cutoff = metric.partition("@")[2]
        if cutoff.isdecimal() and int(cutoff) > item_num:
            raise _too_long(f"kd_{teacher.lower()}_valid_metric", metric, item_num)


def check_labels(config: Config, valid_data: AbstractDataLoader, test_data: AbstractDataLoader) -> None:
    """Refuse evaluation by labels where there are none, or where the metrics are those of a ranking.

    Raises:
        UserError: names the part, the key and the column.
    """
    label = config["LABEL_FIELD"]
    loaders = {"test": test_data, "valid": valid_data if validates(config) else None}
    for part, loader in loaders.items():
        if not loader or len(loader._dataset) == 0 or config["eval_args"]["mode"][part] != "labeled":
            continue
        asked = f"eval_args asks for the mode labeled for the {part} part, but "
        if config["eval_type"] == EvaluatorType.RANKING:
            raise UserError(f"{asked}metrics = {config['metrics']!r} are those of rankings: write AUC, or mode: full.")
        if label not in loader._dataset.inter_feat:
            raise UserError(
                f"{asked}no column is named {label!r}: set threshold to make it of another column, or LABEL_FIELD to "
                "a column of 0 and 1 that load_col names, or mode to full."
            )


def _teachers(config: Config) -> list[str]:
    """The teachers that are fine-tuned: those of kd_loss, and one that items start from."""
    named = list(config["kd_teachers"]) if has_teachers(config) else []
    start = config["kd_item_init"]
    return named if start in ("none", "auto", "text") else [*named, start]


def _has_cutoff(metric: str) -> bool:
    return not {"rec.topk", "rec.items"}.isdisjoint(metric_information[metric.lower()])


def _too_long(key: str, value: Any, item_num: int) -> UserError:
    return UserError(
        f"{key} = {value!r} has a cut-off above the {item_num - 1} items that are left after the filters: lower it, or "
        "widen the filters."
    )
