"""The ranking that the teachers give an example's candidates, and the settings of the losses that learn from it.

Axes: B batch examples, C candidates, K items of a ranking.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Score of a masked candidate: probability exactly 0, 0 * log(0) is a plain 0, and sums of exponentials stay finite.
MASKED = -1e38


@dataclass(frozen=True)
class RankSettings:
    """What the ranking losses need beside the scores: `kd_top_items`, and the keys kd_rank_<name>.

    items: K, the length of a ranking. discrepancy: RD's mu; 0 leaves that weight out, as in RD's warm-up.
    """

    items: int
    position: float
    discrepancy: float
    by_position: float
    by_confidence: float
    by_consistency: float

    @classmethod
    def of(cls, config: Mapping[str, Any], epoch: int) -> "RankSettings":
        """The settings in an epoch, counted from 0."""
        return cls(
            items=config["kd_top_items"],
            position=config["kd_rank_position"],
            discrepancy=config["kd_rank_discrepancy"] if epoch >= config["kd_rank_warm_up"] else 0.0,
            by_position=config["kd_rank_by_position"],
            by_confidence=config["kd_rank_by_confidence"],
            by_consistency=config["kd_rank_by_consistency"],
        )


def teacher_ranking(target: Tensor, mask: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The candidates that the fused target puts first, best first (our choice for several teachers).

    Soft targets grow with the scores, so one teacher alone keeps its own order. With `kd_candidates: teacher_top` that
    is the head of its whole catalogue too. With several teachers it is the head of what each of them puts first.

    Args:
        target: [B, C]; 0 where no teacher covers the candidate, which is then in no ranking.
        mask: [B, C], bool.

    Returns:
        columns [B, K] with K = min(number, C), and listed [B, K]: False behind the end of a shorter ranking.
    """
    best = target.masked_fill(~mask, -1).topk(min(number, target.shape[1]), dim=1)
    return best.indices, best.values > 0


def position_weights(listed: Tensor, scale: float) -> Tensor:
    """exp(-rank / scale) for rank 1 to K, normalised over the listed items; bool [B, K] -> float64 [B, K]."""
    rank = torch.arange(listed.shape[1], device=listed.device)  # [K], from 0: the first has 1, which cannot underflow
    return normalised((-rank.double() / scale).exp() * listed)


def normalised(weights: Tensor) -> Tensor:
    """Weights >= 0 with sum 1 over the ranking, or all 0 where they were; [B, K] -> [B, K]."""
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)
