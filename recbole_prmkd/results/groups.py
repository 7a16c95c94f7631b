"""Test examples that are hard for most models, as groups of their own: cold items and users with a short history.

    cold_items        the target has no training interaction at all, neither as a target nor in a history
    short_histories   the user has at most 5 items before the example

Nothing is ranked again: while RecBole ranks the test examples, the place of each target in its list is noted. So a
group of all examples has exactly the metrics of the whole test. A user's targets count one by one, also where RecBole
averages over users.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import ModelType
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.data.split import Split
from recbole_prmkd.results.covered import metrics_of_ranks
from recbole_prmkd.results.evaluation import leaves_out
from recbole_prmkd.results.schema import GroupResult

COLD_ITEMS, SHORT_HISTORIES = "cold_items", "short_histories"
SHORT = 5  # items before the example, at most
WORDS = {  # for tables
    COLD_ITEMS: "target without a training interaction",
    SHORT_HISTORIES: f"history of at most {SHORT} items",
}

Noted = list[tuple[Tensor, Tensor, Tensor]]  # user, target and rank of the examples of each batch


@contextmanager
def noted_ranks(trainer: Any, config: Config) -> Iterator[Noted]:
    """Inside, rankings of all items by this trainer leave user, target and rank of each example in the list.

    A rank behind the last cut-off is that cut-off plus 1. Equal scores are in the order in which RecBole has them.
    """
    noted: Noted = []
    collector = trainer.eval_collector
    collect, cutoff = collector.eval_batch_collect, max(config["topk"])

    def noting(scores: Tensor, interaction: Any, row: Tensor, item: Tensor) -> None:
        collect(scores, interaction, row, item)
        whole = scores.dim() == 2 and len(interaction) == len(scores)  # else it ranks samples, or nothing
        if whole and config["single_spec"]:
            user = interaction[config["USER_ID_FIELD"]].cpu()[row.cpu()]
            noted.append((user, item.cpu(), _rank(scores, row.to(scores.device), item.to(scores.device), cutoff)))

    collector.eval_batch_collect = noting
    try:
        yield noted
    finally:
        with suppress(AttributeError):
            del collector.eval_batch_collect


def _rank(scores: Tensor, row: Tensor, item: Tensor, cutoff: int) -> Tensor:
    """Ranks of chosen items [P] in the first places of [B, n_items], on the CPU."""
    first = torch.topk(scores, min(cutoff, scores.shape[1]), dim=-1).indices  # [B, K]
    here = first[row] == item[:, None]  # [P, K]
    return torch.where(here.any(dim=1), here.int().argmax(dim=1) + 1, cutoff + 1).cpu()


def student_groups(config: Config, split: Split, noted: Noted, unseen: Noted) -> dict[str, GroupResult]:
    """The groups of a student's test examples; a group without an example is left out.

    Args:
        noted: as RecBole ranks; empty where it ranks samples. unseen: with the user's earlier items left out; empty
            where that is RecBole's own ranking.
    """
    if not isinstance(split.test_data, FullSortEvalDataLoader):
        noted = []
    elif leaves_out(config, split.test_data):
        unseen = noted
    if not unseen:
        return {}
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        return groups_of_examples(config, len(split.item_tokens), split.train, split.test, noted, unseen)
    # From the interactions: data that stock RecBole trains on need not give examples.
    parts = [loader._dataset for loader in (split.train_data, split.valid_data) if loader is not None]
    known = torch.zeros(len(split.item_tokens) + 1, dtype=torch.bool)
    known[parts[0].inter_feat[parts[0].iid_field]] = True
    length = torch.zeros(len(split.user_tokens) + 1, dtype=torch.int64)
    for part in parts:
        length += torch.bincount(part.inter_feat[part.uid_field], minlength=len(length))
    return _groups(config, noted, unseen, known, length[torch.cat([user for user, _, _ in unseen])])


def groups_of_examples(
    config: Config, items: int, train: Examples, test: Examples, noted: Noted, unseen: Noted
) -> dict[str, GroupResult]:
    """The groups of test examples that were ranked one after the other, of so many items."""
    known = torch.zeros(items + 1, dtype=torch.bool)
    known[train.items] = True
    known[train.targets] = True
    return _groups(config, noted, unseen, known, test.lengths)


def _groups(config: Config, noted: Noted, unseen: Noted, known: Tensor, length: Tensor) -> dict[str, GroupResult]:
    """length: [N] items before each example, in the order of the rankings."""
    _, item, rank_unseen = (torch.cat(part) for part in zip(*unseen, strict=True))
    rank = torch.cat([part for _, _, part in noted]) if noted else None
    members = {COLD_ITEMS: ~known[item], SHORT_HISTORIES: length <= SHORT}
    return {
        name: GroupResult(
            examples=int(inside.sum()),
            test={} if rank is None else metrics_of_ranks(rank[inside], config),
            test_unseen=metrics_of_ranks(rank_unseen[inside], config),
        )
        for name, inside in members.items()
        if inside.any()
    }
