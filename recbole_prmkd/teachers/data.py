"""A teacher's view of the data: canonical item numbers, and a RecBole data set made of examples.

Teachers number items and order users by their external tokens, not by first appearance in a file. So nothing of a
teacher, and nothing of its cache, depends on examples that it must not see: changing a validation or test item cannot
even renumber what a teacher was trained on.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.evaluator.register import metrics_dict
from recbole.utils.argument_list import dataset_arguments
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.data.split import Split
from recbole_prmkd.recbole_host.boundary import recbole_errors
from recbole_prmkd.recbole_host.host_properties import is_host
from recbole_prmkd.recbole_host.keys import key_table, kind_of, teacher_seed, teacher_settings
from recbole_prmkd.recbole_host.run_files import no_command_line
from recbole_prmkd.teachers.recbole_model import RecBoleTeacher

# What a teacher shares with the student's run, beside the data arguments and every kd_ key.
_SHARED = (
    "reproducibility",
    "gpu_id",
    "use_gpu",
    "state",
    "show_progress",
    "eval_batch_size",
    "metrics",
    "topk",
    "metric_decimal_place",
    "enable_amp",
    "encoding",
    "worker",
)


@dataclass(frozen=True)
class TeacherData:
    """Canonical examples for all teachers of a run.

    fit, holdout: training examples that a teacher learns from, and a few last ones of users that decide when to stop.
    train: all training examples in the student's order. valid, test: for reporting only.
    item_tokens: by canonical id, from 1; user_tokens: by the student's user id, from 1, which the examples keep.
    canonical: [n_items] student's item id -> canonical id.
    """

    item_tokens: list[str]
    user_tokens: list[str]
    canonical: Tensor
    fit: Examples
    holdout: Examples
    train: Examples
    valid: Examples
    test: Examples

    def dataset(self, config: Config, examples: Examples) -> "ExamplesDataset":
        """These examples as a RecBole data set."""
        dataset = ExamplesDataset(config, examples, self.item_tokens, self.user_tokens)
        dataset.source = self
        return dataset


def teacher_data(split: Split, seed: int) -> TeacherData:
    """The split in canonical numbering. The holdout is at most 5 % of the training examples, at most one per user."""
    order = sorted(range(len(split.item_tokens)), key=split.item_tokens.__getitem__)
    canonical = torch.zeros(len(order) + 1, dtype=torch.int64)
    canonical[1 + torch.tensor(order)] = 1 + torch.arange(len(order))
    train = split.train.renumbered(canonical)
    learnable = train.select(_by_user_token(train, split.user_tokens)).compact()
    last = torch.ones(len(learnable), dtype=torch.bool)
    last[:-1] = learnable.users[1:] != learnable.users[:-1]
    several = learnable.lengths > 1  # a user keeps at least one example to learn from
    candidates = torch.nonzero(last & several).squeeze(1)
    number = min(len(candidates), max(1, len(learnable) // 20))
    sampled = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[:number]
    held = torch.zeros(len(learnable), dtype=torch.bool)
    held[candidates[sampled]] = True
    return TeacherData(
        item_tokens=[split.item_tokens[i] for i in order],
        user_tokens=split.user_tokens,
        canonical=canonical,
        fit=learnable.select(torch.nonzero(~held).squeeze(1)),
        holdout=learnable.select(torch.nonzero(held).squeeze(1)),
        train=train,
        valid=split.valid.renumbered(canonical),
        test=split.test.renumbered(canonical),
    )


def _by_user_token(train: Examples, user_tokens: list[str]) -> Tensor:
    """Numbers of the examples with a history, users in the order of their tokens, each user's in time order."""
    rank = np.empty(len(user_tokens) + 1, dtype=np.int64)
    rank[0] = 0
    rank[1 + np.argsort(np.array(user_tokens), kind="stable")] = 1 + np.arange(len(user_tokens))
    usable = torch.nonzero(train.lengths > 0).squeeze(1)
    return usable[torch.argsort(torch.from_numpy(rank)[train.users[usable]], stable=True)]


def teacher_config(name: str, run: Config) -> Config:
    """RecBole's Config of a teacher: its own properties, the student's data arguments, no command line."""
    shared = {key: run[key] for key in (*dataset_arguments, *_SHARED) if key in run}
    own = teacher_settings(name, run.final_config_dict)
    fixed = {
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
        "repeatable": True,
        "load_col": None,
        "unused_col": None,
        "threshold": None,
        "seed": teacher_seed(name, run.final_config_dict),
    }
    model: Any = kind_of(name)
    if is_host(model):  # the model inside has a configuration of its own
        model, own = RecBoleTeacher, {}
    with no_command_line(), recbole_errors(f"read the settings of the teacher {name}", run):
        config = Config(model=model, dataset=run["dataset"], config_dict={**shared, **own, **fixed})
    if not own:
        _add_host(name, config, run)
    for key in ("data_path", "device", *key_table()):  # as they are: Config would evaluate strings again
        config[key] = run[key]
    for key, value in own.items():
        if isinstance(value, str):  # a file may be called 1e3
            config[key] = value
    # Teachers see examples, not a data set to count popularity or coverage in.
    config["metrics"] = [name for name in config["metrics"] if not _counts_data(name)]
    # The metric that a teacher stops on is computed whatever the student reports.
    metric, _, cutoff = config["valid_metric"].partition("@")
    if metric.lower() not in (name.lower() for name in config["metrics"]):
        config["metrics"] = [*config["metrics"], metric]
    config["topk"] = sorted({*config["topk"], *([int(cutoff)] if cutoff else [])})
    return config


def _add_host(name: str, config: Config, run: Config) -> None:
    """What a model of RecBole as a teacher reads of the run."""
    own = teacher_settings(name, run.final_config_dict)
    for key, value in own.items():
        config[key] = value
    config["teacher"], config["teacher_kind"] = name, kind_of(name)
    config["student_eval_args"], config["student_load_col"] = run["eval_args"], run["load_col"]


def _counts_data(metric: str) -> bool:
    found = metrics_dict.get(metric.lower())
    return found is not None and any(need.startswith("data.") for need in found.metric_need)


def shuffled_items(run: Config, n_items: int, teacher: str) -> Tensor | None:
    """Where `kd_shuffled_teachers` means this teacher, the item whose scores each one gets, [n_items]; else None.

    One order for all teachers, so that they agree as before. Both items are canonical ids.
    """
    shuffled = run["kd_shuffled_teachers"]
    if shuffled is False or (isinstance(shuffled, list) and teacher not in shuffled):
        return None
    order = torch.randperm(n_items - 1, generator=torch.Generator().manual_seed(run["seed"]))
    return torch.cat([torch.zeros(1, dtype=torch.int64), 1 + order])


@dataclass(frozen=True)
class JoinedData:
    """Several data sets as one, for pre-training: items and users of one never meet another's.

    domains: configuration and item tokens of each. fit, holdout: as in `TeacherData`, over all of them.
    """

    domains: list[tuple[Config, list[str]]]
    user_tokens: list[str]
    fit: Examples
    holdout: Examples

    def dataset(self, config: Config, examples: Examples) -> "ExamplesDataset":
        """These examples as a RecBole data set; tokens carry their data set's name."""
        tokens = [f"{domain['dataset']}/{token}" for domain, of_domain in self.domains for token in of_domain]
        return ExamplesDataset(config, examples, tokens, self.user_tokens, self.domains)


def second_half(fit: Examples) -> Examples:
    """The examples whose target is in the second half of its user's items."""
    _, block = torch.unique(fit.start, return_inverse=True)
    max_length = torch.zeros(int(block.max()) + 1, dtype=torch.int64).scatter_reduce(0, block, fit.lengths, "amax")
    return fit.select(torch.nonzero(2 * fit.lengths >= max_length[block] + 1).squeeze(1))


def joined_data(configs: Sequence[Config], parts: Sequence[TeacherData]) -> JoinedData:
    """The training splits of several data sets, one after the other."""
    users = [0, *itertools.accumulate(len(part.user_tokens) for part in parts)][: len(parts)]
    items = [0, *itertools.accumulate(len(part.item_tokens) for part in parts)][: len(parts)]
    return JoinedData(
        domains=[(config, part.item_tokens) for config, part in zip(configs, parts, strict=True)],
        user_tokens=[
            f"{config['dataset']}/{token}"
            for config, part in zip(configs, parts, strict=True)
            for token in part.user_tokens
        ],
        fit=Examples.joined([part.fit for part in parts], users, items),
        holdout=Examples.joined([part.holdout for part in parts], users, items),
    )


class ExamplesDataset(SequentialDataset):
    """Examples as a RecBole sequential data set: what its loaders and a teacher ask of one, and no files.

    domains: configuration and item tokens of each data set that it was joined from, in the order of item ids.
    source: all examples of the run that these are some of, for teachers that are fitted to a data set of their own.
    """

    source: TeacherData | None = None

    def __init__(
        self,
        config: Config,
        examples: Examples,
        item_tokens: Sequence[str],
        user_tokens: Sequence[str],
        domains: Sequence[tuple[Config, list[str]]] = (),
    ) -> None:
        self.config, self.examples, self.logger, self.domains = config, examples, getLogger(), list(domains)
        self.uid_field, self.iid_field = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.item_list_length_field = config["ITEM_LIST_LENGTH_FIELD"]
        self.max_item_list_len = config["MAX_ITEM_LIST_LENGTH"]
        self.field2id_token = {
            self.iid_field: np.array(["[PAD]", *item_tokens]),
            self.uid_field: np.array(["[PAD]", *user_tokens]),
        }
        self.user_feat = self.item_feat = None
        self.inter_feat = Interaction({self.uid_field: examples.users, self.iid_field: examples.targets})

    def num(self, field: str) -> int:
        """Number of items or users, PAD included."""
        return len(self.field2id_token[field])

    def __getitem__(self, index: Any, join: bool = True) -> Interaction:
        numbers = torch.as_tensor(np.asarray(index)).reshape(-1)
        item_seq, item_seq_len = self.examples.histories(numbers, self.max_item_list_len)
        pad = (0, self.max_item_list_len - item_seq.shape[1])
        return Interaction(
            {
                self.uid_field: self.examples.users[numbers],
                self.iid_field: self.examples.targets[numbers],
                self.iid_field + self.config["LIST_SUFFIX"]: torch.nn.functional.pad(item_seq, pad),
                self.item_list_length_field: item_seq_len,
            }
        )

    def __str__(self) -> str:
        return f"{len(self.examples)} examples, {self.num(self.iid_field) - 1} items"
