"""The data of a run: RecBole's own data set and split, and the same split as examples with their histories.

Stock RecBole trains on data that give no examples, so they are built where they are first asked for (`data.parts`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset

from recbole_prmkd.data import atomic_files, lost_lines
from recbole_prmkd.data.event_order import EventTimes
from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.data.parts import Parts, cut_histories, make_parts, snapshot
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.boundary import recbole_errors
from recbole_prmkd.recbole_host.models import named_as_base


@dataclass(frozen=True)
class Split:
    """A student's data: RecBole's three loaders, and the same three parts as examples.

    make_parts: builds the examples where they are first asked for; stock RecBole trains on data that allow none.
    """

    dataset: Dataset
    train_data: AbstractDataLoader
    valid_data: AbstractDataLoader
    test_data: AbstractDataLoader
    make_parts: Callable[[], Parts]
    item_tokens: list[str]  # by internal id, from 1
    user_tokens: list[str]

    @cached_property
    def parts(self) -> Parts:
        """The examples of all parts."""
        return self.make_parts()

    @property
    def train(self) -> Examples:
        """The training examples."""
        return self.parts.train

    @property
    def future(self) -> Examples:
        """The training examples with the user's training items after the target as history."""
        return self.parts.future

    @property
    def valid(self) -> Examples:
        """The validation examples."""
        return self.parts.valid

    @property
    def test(self) -> Examples:
        """The test examples."""
        return self.parts.test

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of training, validation and test examples."""
        return _size(self.train_data), _size(self.valid_data), _size(self.test_data)


def load_split(config: Config, on_read: Callable[[Dataset], None] | None = None) -> Split:
    """Read and split the data set with RecBole's own code, in RecBole's own order of calls.

    Adds one column, the example's number, to the training interactions; the student does not see it. Logs how
    many lines of the file did not become interactions. The validation or test part may be empty. Of two pre-split files
    the second one is the test part, or the validation part by its name.

    Args:
        on_read: called with the data set before it is split.
    Raises:
        UserError: the files or settings cannot be read, or there is nothing to train on.
    """
    folder, layout = Path(config["data_path"]), (config["field_separator"], config["encoding"])
    times = EventTimes(config)
    reading = recbole_errors(
        f"read {config['dataset']} with these settings",
        config,
        lambda: atomic_files.fault_of(folder, config["dataset"], *layout, config["TIME_FIELD"], times.exact),
    )
    with reading, times.kept(), _counting_loaded_lines() as loaded, lost_lines.reported(), named_as_base(config):
        dataset = create_dataset(config)
        getLogger().info(dataset)
    _report_lost_lines(config, dataset, loaded)
    if on_read is not None:
        on_read(dataset)
    return split_dataset(config, dataset, times)


def split_dataset(config: Config, dataset: Dataset, times: EventTimes) -> Split:
    """The split of a data set that has been read, or that a run has kept.

    Raises:
        UserError: it cannot be split with these settings, or there is nothing to train on.
    """
    if len(config["benchmark_filename"] or []) == 2:
        _add_empty_part(config, dataset)
    splitting = recbole_errors(f"split {config['dataset']} with these settings", config)
    with splitting, times.kept(), named_as_base(config):
        loaders = data_preparation(config, dataset)
    if config["save_dataloaders"]:
        for loader in loaders:
            _restart_generator(config, loader)
    split = _split(dataset, *loaders, times=times.of_pre_split(_size(loaders[0])))
    train, valid, test = split.sizes
    if train == 0:
        raise UserError("The training split is empty: lower the filters, or change the split in eval_args.")
    getLogger().info(f"Examples: {train} for training, {valid} for validation, {test} for test.")
    # What is wrong with the examples shows before anything expensive.
    if config["kd"] != "none" and not split.train.targets.any():  # all padding
        raise UserError(
            f"No training interaction of {config['dataset']} has an item: write ids into the column "
            f"{config['ITEM_ID_FIELD']}, or use --kd=none."
        )
    return split


@contextmanager
def split_of_loaders(train_data: Any, valid_data: Any = None) -> Iterator[Split]:
    """The same from loaders that RecBole's own code has made, which are put back afterwards; there is no test part."""
    split = _split(train_data._dataset, train_data, valid_data, None)
    _ = split.parts
    try:
        yield split
    finally:
        del train_data._dataset.inter_feat.interaction[EXAMPLE]


def _split(
    dataset: Dataset, train_data: Any, valid_data: Any, test_data: Any, *, times: torch.Tensor | None = None
) -> Split:
    loaders = (train_data, valid_data, test_data)
    as_read = [snapshot(loader._dataset) if _size(loader) else None for loader in loaders]
    train = train_data._dataset.inter_feat
    train.interaction[EXAMPLE] = torch.arange(len(train))
    for part in (dataset, *(loader._dataset for loader in loaders if loader is not None)):
        cut_histories(part, train_data._dataset.config)
    return Split(
        dataset=dataset,
        train_data=train_data,
        valid_data=valid_data,
        test_data=test_data,
        make_parts=lambda: make_parts(*as_read, times=times),
        item_tokens=[str(token) for token in dataset.field2id_token[dataset.iid_field][1:]],
        user_tokens=[str(token) for token in dataset.field2id_token[dataset.uid_field][1:]],
    )


def _add_empty_part(config: Config, dataset: Dataset) -> None:
    """Let RecBole, which cuts the interactions of its pre-split files by these sizes, find three of them in two."""
    validates = config["benchmark_filename"][1].lower().startswith(("val", "dev"))
    dataset.file_size_list.insert(2 if validates else 1, 0)


def _restart_generator(config: Config, loader: Any) -> None:
    """Put back the generator that RecBole takes off a loader to save it; else the run that saves is another one."""
    if loader.generator is None:
        loader.generator = loader.sampler.generator = torch.Generator().manual_seed(config["seed"])


def _size(loader: Any) -> int:
    return len(loader._dataset.inter_feat) if loader is not None else 0


def by_domain(config: Config, dataset: Dataset) -> list[tuple[Config, list[str]]]:
    """Configuration and item tokens of each domain, in the order of item ids; one where it is a plain data set."""
    tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field][1:]]
    return getattr(dataset, "domains", None) or [(config, tokens)]


def in_dataset(path: str, config: Config) -> Path:
    """A path with the name of the data set in place of `{dataset}`, for settings that several data sets share."""
    return Path(path.replace("{dataset}", config["dataset"]))


@contextmanager
def _counting_loaded_lines() -> Iterator[dict[str, int]]:
    """Number of rows that RecBole's reader gets from each file, by path."""
    counts: dict[str, int] = {}
    load = Dataset._load_feat

    def counting(self: Dataset, filepath: str, source: Any) -> Any:
        frame = load(self, filepath, source)
        if frame is not None:
            counts[filepath] = len(frame)
        return frame

    Dataset._load_feat = counting
    try:
        yield counts
    finally:
        Dataset._load_feat = load


def _report_lost_lines(config: Config, dataset: Dataset, loaded: dict[str, int]) -> None:
    """Say what the reader lost (a double quote joins lines) and what the filters took out."""
    for filepath, rows in loaded.items():
        with Path(filepath).open(encoding=config["encoding"] or "utf-8") as file:
            lines = sum(1 for line in file if line.strip()) - 1
        if lines != rows:
            getLogger().warning(
                f"RecBole's reader made {rows} rows of the {lines} lines of {filepath}: look for double quotes, "
                "which it takes for the start of a text that may span lines."
            )
    interactions = sum(rows for filepath, rows in loaded.items() if filepath.endswith(".inter"))
    if interactions > len(dataset.inter_feat):
        getLogger().warning(
            f"RecBole's filters kept {len(dataset.inter_feat)} of {interactions} interactions "
            "(missing ids, duplicates, value and count intervals)."
        )
