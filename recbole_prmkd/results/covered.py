"""Teacher and student on the same test examples: those that the teacher covers.

A teacher's metrics go over all test examples, also over those that it cannot score, whose order is then that of ties.
Beside them stand its metrics over the covered examples, their share, and the student's over the same.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from recbole.config import Config
from torch import Tensor

from recbole_prmkd.data.split import Split
from recbole_prmkd.results.schema import CoveredResult, Metrics
from recbole_prmkd.results.target_ranks import unseen_ranks, why_no_ranks

# Of one target at its rank within the cut-off; RecBole's definitions, in which these need no more than the rank.
_OF_RANK: dict[str, Callable[[Tensor, int], Tensor]] = {
    "hit": lambda rank, cutoff: torch.ones_like(rank),
    "recall": lambda rank, cutoff: torch.ones_like(rank),
    "precision": lambda rank, cutoff: torch.full_like(rank, 1 / cutoff),
    "mrr": lambda rank, cutoff: 1 / rank,
    "map": lambda rank, cutoff: 1 / rank,
    "ndcg": lambda rank, cutoff: 1 / torch.log2(rank + 1),
}


def covered_result(
    covered: Tensor, teacher: Mapping[str, Metrics], student: Metrics | None, config: Config, split: Split, ranks: Any
) -> CoveredResult:
    """One teacher's part of result.json.

    Args:
        covered: [N] which test examples it covers. teacher: its metrics on these, `test` and `test_unseen`.
        student: `test_unseen` of the student over all examples; None where there is none.
        ranks: what `student_ranks` gave.
    """
    share = float(covered.float().mean()) if len(covered) else 0.0
    if student is None or not covered.any():
        own = None
    elif covered.all():
        own = student
    else:
        own = None if ranks is None else metrics_of_ranks(_chosen(ranks, split, covered), config)
    return CoveredResult(share=share, examples=int(covered.sum()), **teacher, student_unseen=own)


def student_ranks(
    trainer: Any, config: Config, split: Split, covered: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """User, target and rank (earlier items left out) of each test example; None where no teacher makes them needed."""
    partly = any(part.any() and not part.all() for part in covered)
    if not partly or why_no_ranks(config, split) is not None:
        return None
    return unseen_ranks(trainer, config, split)


def metrics_of_ranks(rank: Tensor, config: Config) -> Metrics:
    """The configured metrics that one rank per example [N] decides, under RecBole's keys."""
    metrics = {}
    for name in (metric.lower() for metric in config["metrics"] if metric.lower() in _OF_RANK):
        for cutoff in config["topk"]:
            values = torch.where(rank <= cutoff, _OF_RANK[name](rank.double(), cutoff), 0.0)
            metrics[f"{name}@{cutoff}"] = round(float(values.mean()), config["metric_decimal_place"])
    return metrics


def _chosen(ranks: tuple[Tensor, Tensor, Tensor], split: Split, covered: Tensor) -> Tensor:
    """The ranks of the examples that are covered; user and target tell which these are."""
    user, item, rank = ranks
    number = len(split.item_tokens) + 1
    wanted = (split.test.users * number + split.test.targets)[covered]
    return rank[torch.isin(user * number + item, wanted)]
