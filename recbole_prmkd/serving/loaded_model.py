"""A trained student from its run's folder, or from one file, without the data set.

The model is built as it was for its training: by its own class, from the data set that the run has kept, under the
run's seed. So models that hold a graph, the users' histories or samples of a knowledge graph are the same ones again.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType, get_model, init_seed

from recbole_prmkd.data.event_order import EventTimes
from recbole_prmkd.data.split import Split, split_dataset
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.boundary import recbole_errors
from recbole_prmkd.recbole_host.config import find_model
from recbole_prmkd.recbole_host.host_properties import is_host
from recbole_prmkd.recbole_host.models import host_trainer
from recbole_prmkd.recbole_host.own_checkpoint import read_weights
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.results.evaluation import evaluate_unseen, leaves_out, plain
from recbole_prmkd.results.run_folder import RESULT, read_result
from recbole_prmkd.serving.histories import Histories, known_histories
from recbole_prmkd.serving.kept_data import DATA, Kept, read
from recbole_prmkd.students.adapter import clear_graph_cache
from recbole_prmkd.teachers import TEACHERS


class LoadedModel:
    """A trained student with its tokens, settings and known histories.

    Attributes:
        model: the RecBole model, in evaluation mode.
        config: the settings of its run, for this machine.
        dataset: RecBole's data set that the model was built from.
        user_tokens, item_tokens: by internal id; the first one is padding.
    """

    def __init__(self, kept: Kept, model_class: type | str | None = None) -> None:
        self.kept = kept
        self.config = kept.config()
        self._check_class(model_class)
        self.model, self.dataset = self._built()
        tokens = self.dataset.field2id_token
        self.user_tokens = [str(token) for token in tokens[self.dataset.uid_field]]
        self.item_tokens = [str(token) for token in tokens[self.dataset.iid_field]]

    @property
    def name(self) -> str:
        """The name of the model's class."""
        return str(self.config["model"])

    @cached_property
    def histories(self) -> Histories:
        """What each user is known to have taken: training, validation and test, newest last."""
        return known_histories(self.kept.dataset(self.config))

    @cached_property
    def split(self) -> Split:
        """RecBole's split of the data set, the same as in the run; takes as long as in the run."""
        return _split(self.config, self.kept.dataset(self.config))

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The metrics of result.json once more: valid, test, and both with earlier items left out (`*_unseen`)."""
        from recbole_prmkd.training import ranking  # which imports this room for `carry_over`

        config, split, results = self.config, self.split, {}
        with tempfile.TemporaryDirectory() as folder, ranking(config, split, self.model):
            trainer = quiet_trainer(host_trainer(config, type(self.model)), config, self.model, Path(folder))
            trainer.eval_collector.data_collect(split.train_data)  # for metrics of coverage and popularity
            for part, size in zip(("valid", "test"), split.sizes[1:], strict=True):
                loader = getattr(split, f"{part}_data")
                found = trainer.evaluate(loader, load_best_model=False) if size else None
                unseen = found
                if found is not None and not leaves_out(config, loader):
                    unseen = evaluate_unseen(trainer, config, loader, getattr(split, part))
                results[part], results[f"{part}_unseen"] = plain(found), plain(unseen)
            trainer.tensorboard.close()
        clear_graph_cache(self.model)
        return results

    def recommend(self, **settings: Any) -> pd.DataFrame | Path:
        """`recbole_prmkd.recommend` with this model; the arguments are the same."""
        from recbole_prmkd.serving.recommendation import recommend

        return recommend(self, **settings)

    def _check_class(self, given: type | str | None) -> None:
        if given is not None and (found := find_model(given)).__name__ != self.name:
            raise UserError(f"The model is a {self.name}, not a {found.__name__}: name its own class, or none.")
        try:
            get_model(self.name)
        except (ValueError, AttributeError, ImportError) as error:
            if is_host(self.name):
                raise UserError(f"{self.name} needs a package that is not installed: {error}.") from error
            raise UserError(
                f"{self.name} is a model of your own: name its class as in training, with "
                f"--model=package.module:{self.name}, or recbole_prmkd.load(..., model=...)."
            ) from error

    def _built(self) -> tuple[AbstractRecommender, Dataset]:
        """The model with its weights, in evaluation mode, and the data set that it was built from."""
        config = self.config
        if self.name in TEACHERS:
            raise UserError(f"{self.name} reads item texts when it is built: only other students can be loaded.")
        with recbole_errors(f"build {self.name} from {self.kept.file}", config), _quietly():
            dataset = training_dataset(config, self.kept)
            init_seed(config["seed"], config["reproducibility"])
            model = get_model(self.name)(config, dataset).to(config["device"])
        weights, others = (
            (self.kept.weights, self.kept.others) if self.kept.weights or self.kept.others else self._checkpoint()
        )
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            words = " ".join(str(error).split())[:200]
            raise UserError(f"The weights beside {self.kept.file} are of another model ({words}).") from error
        model.load_other_parameter(others)
        clear_graph_cache(model)
        model.eval()
        return model, dataset

    def _checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        folder = self.kept.file.parent
        name = read_result(folder).student.checkpoint
        if name is None or not (folder / name).is_file():
            raise UserError(f"{folder} has no checkpoint ({name or 'none was saved'}): train again with it.")
        return read_weights(folder / name)


def load(path: str | Path, model: type | str | None = None) -> LoadedModel:
    """The trained student of a run's folder, or of a file of `--export --format=weights`; needs no data set.

    Args:
        path: folder with result.json, or the file.
        model: class of the student, or `package.module:Class`, where it is a class of your own.
    Raises:
        UserError: there is no finished run, its data were not kept, or a file is damaged.
    """
    path = Path(path)
    if path.is_dir():
        read_result(path)
        if not (path / DATA).is_file():
            raise UserError(
                f"{path} has {RESULT} but no {DATA}, which a comparison and earlier versions do not write and "
                "unsaved students do not have: train it in a plain run with this version."
            )
        path = path / DATA
    try:
        kept = read(path)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again, or train again.") from error
    if path.name != DATA and not (kept.weights or kept.others):
        raise UserError(f"{path} holds no weights: name the run's folder, or a file of --format=weights.")
    return LoadedModel(kept, model)


def training_dataset(config: Config, kept: Kept) -> Dataset:
    """The data set that a model's constructor reads: the training part as RecBole has it.

    A sequential model reads no interactions then, so that RecBole need not copy each history for each example: a
    single user's interactions stand for all.
    """
    dataset = kept.dataset(config)
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and not config["benchmark_filename"]:
        users = dataset.inter_feat[dataset.uid_field]
        dataset.inter_feat = dataset.inter_feat[users == users.value_counts().index[0]].reset_index(drop=True)
        if hasattr(dataset, "neg_item_list"):
            dataset.neg_item_list = dataset.neg_item_list[: len(dataset.inter_feat)]
        dataset._change_feat_format()
        return dataset
    return _split(config, dataset).train_data._dataset


def _split(config: Config, dataset: Dataset) -> Split:
    init_seed(config["seed"], config["reproducibility"])  # a random split is the same one again
    with _quietly():
        return split_dataset(config, dataset, EventTimes(config))


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside, what the run has logged and warned of is not said again."""
    root = getLogger()
    level = root.level
    root.setLevel("ERROR")
    try:
        yield
    finally:
        root.setLevel(level)
