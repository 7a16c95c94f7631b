"""Vectors that a teacher has, and losses where some are missing; for the methods that compare vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def is_covered(vectors: Tensor) -> Tensor:
    """[B, D] -> [B] bool."""
    return (vectors != 0).any(-1)


def mean_of_covered(losses: Sequence[Tensor], covered: Sequence[Tensor]) -> Tensor:
    """Per example, the mean of the losses that it has, 0 where it has none; [B] each -> [B]."""
    counts = torch.stack(list(covered))  # [losses, B]
    return torch.stack(list(losses)).masked_fill(~counts, 0).sum(0) / counts.sum(0).clamp(min=1)
