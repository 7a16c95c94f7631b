"""A checkpoint of RecBole's as a teacher: read without running what it pickles, and held against this run.

RecBole saves no tokens beside the weights. Its ids follow from the data set, its filters and the columns, so these, and
the split that keeps validation and test items out of training, must be those of this run.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.own_checkpoint import read_own

# Settings that decide which interactions there are, how they are numbered and which of them are training examples.
_OF_DATA = (
    *("dataset", "user_inter_num_interval", "item_inter_num_interval", "val_interval", "rm_dup_inter"),
    *("benchmark_filename", "USER_ID_FIELD", "ITEM_ID_FIELD"),
)


def read(path: Path, host_config: Config, model: AbstractRecommender, teacher: Config) -> dict[str, Any]:
    """The content of a checkpoint of the same model on the same data.

    Raises:
        UserError: unreadable, another model, or other data.
    """
    content = read_own(path, host_config, model, what="model")
    if not isinstance(content, dict) or not {"config", "state_dict"} <= content.keys():
        raise UserError(f"{path} is no checkpoint of RecBole's: name the .pth file that a run has saved.")
    config, name = content["config"], teacher["teacher"]
    if config["model"] != host_config["model"]:
        raise UserError(f"{path} holds a {config['model']}, not a {host_config['model']}: name it in kd_teachers.")
    for key in _OF_DATA:
        if config[key] != teacher[key]:
            raise UserError(
                f"{path} was trained with {key} = {config[key]!r}, this run has {teacher[key]!r}: {name} must be a "
                "model of the same data set and filters."
            )
    split, own = _split(config["eval_args"]), _split(teacher["student_eval_args"])
    if split != own and not teacher["benchmark_filename"]:
        raise UserError(
            f"{path} was trained on the split {split}, this run has {own}: {name} may have learnt from validation or "
            "test items, so train it on the same split."
        )
    return content


def own_settings(config: Config, given: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The model's keys as the checkpoint's run had them."""
    return {key: config[key] for key in keys if key in given and config[key] is not None}


def _split(arguments: Any) -> dict[str, Any]:
    return {key: arguments[key] for key in ("split", "order", "group_by")}
