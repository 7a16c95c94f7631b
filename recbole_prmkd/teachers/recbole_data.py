"""Training examples as a data set that RecBole's own code has read, for the models of RecBole that are teachers.

The interactions are written as an atomic file, users by their tokens and each user's in time order; side files (.item,
.user, .kg, .link) are those of the data set. Users and items are numbered by a list of tokens that is put before all
else, so that ids do not depend on where a token first appears in a file.
"""

import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType, ModelType, get_model
from torch import Tensor

from recbole_prmkd.data import atomic_files
from recbole_prmkd.data.examples import Examples
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import kind_of, teacher_settings
from recbole_prmkd.recbole_host.run_files import no_command_line
from recbole_prmkd.storage import store
from recbole_prmkd.storage.disk import writing
from recbole_prmkd.students.traits import traits_of

# What a model's configuration shares with that of its teacher.
_FIELDS = (
    *("USER_ID_FIELD", "ITEM_ID_FIELD", "RATING_FIELD", "TIME_FIELD", "LABEL_FIELD", "NEG_PREFIX", "LIST_SUFFIX"),
    *("ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD", "HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD"),
    *("RELATION_ID_FIELD", "ENTITY_ID_FIELD", "field_separator", "seq_separator", "seq_len", "encoding"),
)
_RUN = ("reproducibility", "gpu_id", "use_gpu", "state", "show_progress", "eval_batch_size", "worker", "enable_amp")
_MEASURE = ("metrics", "topk", "metric_decimal_place", "seed")


@dataclass(frozen=True)
class Interactions:
    """Who had what, [M] both: canonical item ids, and users by the student's id; by user token and time."""

    users: Tensor
    items: Tensor

    def digest(self, user_tokens: list[str]) -> str:
        """Hash of tokens' users and canonical items."""
        return store.digest([self.items, [user_tokens[user - 1] for user in self.users.tolist()]])


def interactions(train: Examples, holdout: Examples, user_tokens: list[str]) -> Interactions:
    """All interactions of the training examples but the targets of the holdout."""
    triples = torch.cat([_of_histories(train), torch.stack([train.users, train.lengths, train.targets], dim=1)])
    held = torch.stack([holdout.users, holdout.lengths, holdout.targets], dim=1)
    rank = torch.zeros(len(user_tokens) + 1, dtype=torch.int64)
    order = np.argsort(np.array(user_tokens), kind="stable")
    rank[1 + torch.from_numpy(order)] = 1 + torch.arange(len(order))
    found = torch.unique(torch.cat([triples, held]), dim=0)
    if len(held):
        _, number, count = torch.unique(torch.cat([found, held]), dim=0, return_inverse=True, return_counts=True)
        found = found[count[number[: len(found)]] == 1]
    found = found[torch.argsort(rank[found[:, 0]], stable=True)]
    return Interactions(found[:, 0], found[:, 2])


def _of_histories(examples: Examples) -> Tensor:
    """User, place and item of every history's items, [M, 3]; what several examples share comes once."""
    usable = examples.select(torch.nonzero(examples.lengths > 0).squeeze(1))
    start, block = torch.unique(usable.start, return_inverse=True)
    size = torch.zeros_like(start).scatter_reduce(0, block, usable.lengths, "amax")
    user = torch.zeros_like(start).scatter_reduce(0, block, usable.users, "amax")
    place = torch.arange(int(size.sum())) - (size.cumsum(0) - size).repeat_interleave(size)
    items = usable.items[start.repeat_interleave(size) + place]
    return torch.stack([user.repeat_interleave(size), place, items], dim=1)


def host_config(
    kind: str, own: Mapping[str, Any], teacher: Config, load_col: Mapping[str, Any] | None, folder: Path
) -> Config:
    """RecBole's Config of the model: its own keys, the teacher's fields and metrics, its files in `folder`.

    Raises:
        UserError: RecBole refuses the settings.
    """
    shared = {key: teacher[key] for key in (*_FIELDS, *_RUN, *_MEASURE) if teacher[key] is not None}
    negatives = own["train_neg_sample_args"]
    if negatives == "auto":
        full = own.get("loss_type") == "CE" and get_model(kind).type == ModelType.SEQUENTIAL
        negatives = None if full else {"distribution": "uniform", "sample_num": 1}
    fixed = {
        "train_neg_sample_args": negatives,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "load_col": _load_col(side_columns(kind, own, load_col), teacher),
        **dict.fromkeys(
            ("unload_col", "unused_col", "threshold", "rm_dup_inter", "val_interval", "benchmark_filename")
        ),
        **dict.fromkeys(("user_inter_num_interval", "item_inter_num_interval", "dataset_save_path")),
        **dict.fromkeys(("dataloaders_save_path", "alias_of_user_id", "alias_of_item_id")),
        **dict.fromkeys(("save_dataset", "save_dataloaders", "filter_inter_by_user_or_item"), False),
        "data_path": str(folder),
        "checkpoint_dir": str(folder),
    }
    try:
        with no_command_line():
            config = Config(model=kind, dataset=teacher["dataset"], config_dict={**shared, **own, **fixed})
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise UserError(f"RecBole refuses the settings of the teacher {teacher['teacher']}: {error}.") from error
    config["device"] = teacher["device"]
    return config


def side_columns(kind: str, own: Mapping[str, Any], load_col: Mapping[str, Any] | None) -> dict[str, list[str] | None]:
    """The columns of side files that the model reads, by suffix; None: all of them.

    Of users and items these are the columns that load_col names for the run, as in RecBole; all where it is None.
    """
    model_type = get_model(kind).type
    if model_type == ModelType.KNOWLEDGE:
        return {"kg": None, "link": None}
    if "selected_features" in own:
        return {"item": list(own["selected_features"])}
    if model_type == ModelType.CONTEXT or kind == "DIN":
        return {
            name: load_col[name] if load_col else None for name in ("item", "user") if not load_col or name in load_col
        }
    return {}


def side_files(columns: Mapping[str, Any], config: Config) -> dict[str, Path]:
    """The side files of the data set that are there, by suffix."""
    files = {suffix: Path(config["data_path"]) / f"{config['dataset']}.{suffix}" for suffix in columns}
    return {suffix: file for suffix, file in files.items() if file.is_file()}


def _load_col(columns: Mapping[str, list[str] | None], config: Config) -> dict[str, list[str]]:
    loaded = {"inter": [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]]}
    for suffix, file in side_files(columns, config).items():
        there = list(atomic_files.columns(file, config["field_separator"], config["encoding"]))
        wanted = [*(columns[suffix] or there), *loaded["inter"]]
        loaded[suffix] = [name for name in there if name in wanted]
    return loaded


@contextmanager
def written(
    given: Interactions, tokens: tuple[list[str], list[str]], files: Mapping[str, Path], teacher: Config
) -> Iterator[Path]:
    """Inside, a folder with the data set's files, in the place of `data_path`; tokens: of users and of items."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / teacher["dataset"]
        data.mkdir(parents=True)
        columns = {
            f"{teacher['USER_ID_FIELD']}:token": np.array(tokens[0], dtype=object)[given.users.numpy() - 1],
            f"{teacher['ITEM_ID_FIELD']}:token": np.array(tokens[1], dtype=object)[given.items.numpy() - 1],
        }
        inter = data / f"{teacher['dataset']}.inter"
        with writing(inter):
            pd.DataFrame(columns).to_csv(
                inter, sep=teacher["field_separator"], index=False, encoding=teacher["encoding"]
            )
        for suffix, file in files.items():
            os.symlink(file.resolve(), data / f"{teacher['dataset']}.{suffix}")
        yield Path(folder)


def read(config: Config, users: list[str], items: list[str]) -> Dataset:
    """The data set that RecBole reads for this configuration; ids of these users and items count from 1, in this order.

    In a knowledge model's data set RecBole orders items anew, so the order of ids is asked of the data set.
    """
    first = {config["USER_ID_FIELD"]: users, config["ITEM_ID_FIELD"]: items}
    with _numbered(first):
        dataset = create_dataset(config)
    Dataset._change_feat_format(dataset)
    return dataset


@contextmanager
def _numbered(first: Mapping[str, list[str]]) -> Iterator[None]:
    """Inside, RecBole numbers the tokens of these fields before all others."""
    host = Dataset._get_remap_list

    def listed(self: Dataset, fields: Any) -> list[Any]:
        before = [
            (pd.DataFrame({field: np.array(first[field], dtype=object)}), field, FeatureType.TOKEN)
            for field in fields
            if field in first
        ]
        return before + host(self, fields)

    Dataset._get_remap_list = listed
    try:
        yield
    finally:
        Dataset._get_remap_list = host


def loaders(config: Config, dataset: Dataset, fit: Interaction, holdout: Interaction) -> tuple[Any, Any]:
    """RecBole's own loaders of what is learnt from and of the holdout; None in its place where it is empty."""
    train = dataset.copy(fit)
    held = dataset.copy(holdout) if len(holdout) else train
    train.build = lambda: [train, held, held]
    train_data, valid_data, _ = data_preparation(config, train)
    del train.build
    return train_data, valid_data if len(holdout) else None


def check_host(teacher: str, run: Config) -> None:
    """Refuse a model that cannot be a teacher.

    Raises:
        UserError: it is trained in stages, RecBole reads its data by a class of its own, or a package, file or column
            is missing.
    """
    kind = kind_of(teacher)
    try:
        traits = traits_of(get_model(kind))[0]
    except ImportError as error:
        raise UserError(f"The teacher {teacher} needs a package that is not installed: {error}.") from error
    if traits.training == "stages" or hasattr(importlib.import_module("recbole.data.dataset"), f"{kind}Dataset"):
        why = "is trained in stages" if traits.training == "stages" else "reads its data in a way of its own"
        raise UserError(f"{kind} {why}, so it cannot be a teacher: name another model in kd_teachers.")
    if traits.package and importlib.util.find_spec(traits.package) is None:
        raise UserError(f"The teacher {teacher} needs the package {traits.package}, which is not installed.")
    if len(run["field_separator"]) != 1:
        raise UserError(
            f"The teacher {teacher} needs a file with one character between columns, but field_separator is "
            f"{run['field_separator']!r}: convert the data set, or leave it out of kd_teachers."
        )
    own = teacher_settings(teacher, run.final_config_dict)
    columns = side_columns(kind, own, run["load_col"])
    files = side_files(columns, run)
    lacking = [f"{run['dataset']}.{suffix}" for suffix in columns if suffix not in files]
    if lacking and get_model(kind).type == ModelType.KNOWLEDGE:
        raise UserError(
            f"The teacher {teacher} needs {' and '.join(lacking)} in {run['data_path']}: put them there, or leave it "
            "out of kd_teachers."
        )
    there = atomic_files.columns(files["item"], run["field_separator"], run["encoding"]) if "item" in files else ()
    missing = [name for name in own.get("selected_features", ()) if name not in there]
    if missing:
        raise UserError(
            f"The teacher {teacher} reads {', '.join(missing)} of each item, which {run['dataset']}.item lacks: name "
            f"columns that it has with --kd_{teacher.lower()}_selected_features."
        )
