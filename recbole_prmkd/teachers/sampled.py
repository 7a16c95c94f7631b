"""Sampled softmax: cross-entropy over a batch's targets and random items in place of all items.

The sum over all items in the softmax is estimated from the candidates by dividing each one's term by the probability
that it is a candidate (logQ correction, Bengio and Senecal 2008; here with inclusion probabilities, the estimator of
Horvitz and Thompson). Popular items are candidates nearly always, through the batch's targets; rare ones through the
uniform sample. A batch's targets alone would hardly ever lower the score of a rare item. Our choice of both together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

SOFTMAX = ("auto", "sampled", "full")
LEAST_ITEMS = 1500  # auto: in a smaller catalogue nearly all items are needed in each step anyway


class Sampler(nn.Module):
    """Chooses the candidates of a batch: its distinct targets and `negatives` distinct items of all.

    Args:
        targets: [N] target items of all training examples.
        n_items: with PAD, which the full softmax counts too.
    """

    counts: Tensor  # [n_items] training examples of each item

    def __init__(self, targets: Tensor, n_items: int, negatives: int) -> None:
        super().__init__()
        self.register_buffer("counts", torch.bincount(targets, minlength=n_items), persistent=False)
        self.examples, self.negatives = len(targets), min(negatives, n_items)

    def forward(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates [C] in ascending order, and the logarithm of each one's probability to be one, [C]."""
        n_items = len(self.counts)
        uniform = torch.randperm(n_items, device=targets.device)[: self.negatives]
        candidates = torch.unique(torch.cat([targets, uniform]))  # [C]
        # An item is no candidate if none of its examples is in the batch, and the uniform sample lacks it.
        left = 1 - min(1.0, len(targets) / max(1, self.examples))
        absent = (1 - self.negatives / n_items) * left ** self.counts[candidates].double()  # [C]
        return candidates, torch.log1p(-absent).float()


def sampled_cross_entropy(scores: Tensor, own: Tensor, log_probability: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of each example's target among the candidates; with all items as these, the full one's.

    Args:
        scores: [R, C], not yet divided by the temperature.
        own: [R] which candidate is the example's target; it is one with certainty, so that it is not corrected.
        log_probability: [C], what `Sampler` gave.
    """
    correction = -log_probability.repeat(len(scores), 1)  # [R, C]
    correction.scatter_(1, own[:, None], 0.0)
    return functional.cross_entropy(correction.add(scores, alpha=1 / temperature), own)


class QuickDropout(nn.Module):
    """Dropout from random bytes: on a CPU in a seventh of the time of torch's own, which it is elsewhere.

    The share that is dropped is rounded to the next 1/256; what stays is scaled by the exact share.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        drop = round(256 * self.p)
        if not self.training or drop == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.p)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = (words.view(torch.uint8)[: x.numel()] >= drop).view(x.shape)
        return x * (keep * (256 / (256 - drop)))
