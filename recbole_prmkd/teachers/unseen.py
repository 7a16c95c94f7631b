"""How scores rank the next items among those that the user has not had."""

import torch
from torch import Tensor


def without_history(scores: Tensor, item_seq: Tensor, targets: Tensor) -> Tensor:
    """Scores [B, n_items] with -inf for PAD and the items of each history, the target excepted.

    Args:
        item_seq: [B, L], 0 for PAD; targets: [B].
    """
    target = targets[:, None]
    own = scores.gather(1, target)  # [B, 1]
    scores = scores.scatter(1, item_seq, -torch.inf)
    scores[:, 0] = -torch.inf
    return scores.scatter_(1, target, own)


def ndcg_at_10(scores: Tensor, targets: Tensor) -> Tensor:
    """NDCG@10 of each example, [B]; of a tie the target is last. scores: as `without_history` gives them."""
    rank = (scores >= scores.gather(1, targets[:, None])).sum(1)  # [B], from 1
    return torch.where(rank <= 10, 1 / torch.log2(rank + 1.0), 0)
