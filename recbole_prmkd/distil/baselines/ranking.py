"""The ranking that the teachers give an example's candidates.

Axes: B batch examples, C candidates, K items of a ranking.
"""

import torch
from torch import Tensor


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


def ranks(scores: Tensor, columns: Tensor) -> Tensor:
    """How many of an example's candidates have a higher score than these; [B, C], [B, K] -> [B, K], from 0."""
    ascending = scores.sort(dim=1).values  # [B, C]
    return scores.shape[1] - torch.searchsorted(ascending, scores.gather(1, columns), right=True)


def position_weights(listed: Tensor, scale: float) -> Tensor:
    """exp(-rank / scale) for rank 1 to K, normalised over the listed items; bool [B, K] -> float64 [B, K]."""
    rank = torch.arange(listed.shape[1], device=listed.device)  # [K], from 0: the first has 1, which cannot underflow
    return normalised((-rank.double() / scale).exp() * listed)


def normalised(weights: Tensor) -> Tensor:
    """Weights >= 0 with sum 1 over the ranking, or all 0 where they were; [B, K] -> [B, K]."""
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1)
