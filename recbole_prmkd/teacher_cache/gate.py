"""A gate: how much each teacher counts for each candidate of each example, learnt on held-out examples.

    exponent_t(x, c) = base_t x exp(net(features of x and c))_t
    log target(c)    = sum over t of exponent_t(x, c) x log p_t(c), or log of the weighted sum of p_t(c)

The features exist for every data set: each teacher's log-probability of the candidate, its distance to the teacher's
first item, its rank, the entropy of the teacher's soft targets, whether the teacher covers it; the candidate's
popularity and the history's length. What of these needs the scores of all items is a teacher's `profile` of the
example. `teachers.gate_fit` learns the net. Our choice (stacking).

Axes: T teachers, B examples, C candidates, F features, P numbers of a profile.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

GRID = tuple(1 << power for power in range(7))  # ranks whose log-probabilities a profile holds
PROFILE = 3 + len(GRID)
_LONGEST = 50  # histories beyond that are alike
_WIDTH, _NETS, _DROPOUT = 16, 3, 0.1
_FARTHEST = 5.0  # of a standardised feature
_STEEPEST = 2.0  # of the net's output


class About(NamedTuple):
    """What a gate knows of training examples and items beside the scores.

    lengths: [N] of the histories. popularity: [n_items] training examples that have the item as their target.
    """

    lengths: Tensor
    popularity: Tensor


def profile(scores: Tensor) -> Tensor:
    """What a teacher's scores of all items look like, [..., n_items] -> [..., P]; 0 where it covers none.

    log of the sum of exponentials, log of the number of covered items, entropy, and the log-probabilities at the ranks
    of `GRID`, times that number.

    Args:
        scores: divided by the temperature; -inf for what is no candidate or not covered.
    """
    number = scores.isfinite().sum(-1, keepdim=True)  # [..., 1]
    total = scores.logsumexp(-1, keepdim=True)  # [..., 1]
    logs = scores - total  # [..., n_items]
    entropy = -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0)).sum(-1, keepdim=True)
    first = scores.topk(min(GRID[-1], scores.shape[-1]), dim=-1).values
    lowest = scores.masked_fill(scores == -torch.inf, torch.inf).amin(-1, keepdim=True)
    index = torch.tensor(GRID, device=scores.device).clamp(max=first.shape[-1]) - 1
    grid = torch.maximum(first[..., index], lowest) - total + number.log()  # [..., len(GRID)]
    made = torch.cat([total, number.log(), entropy, grid], dim=-1)
    return torch.where(number > 0, made, 0)


def relative(scores: Tensor, profiles: Tensor) -> Tensor:
    """Log-probabilities among all items, times their number: 0 is a guess. NaN stays: not covered.

    scores: [T, B, C] divided by the temperatures; profiles: [T, B, P].
    """
    return scores - (profiles[..., :1] - profiles[..., 1:2])


def features(logs: Tensor, profiles: Tensor, popularity: Tensor, lengths: Tensor) -> Tensor:
    """[B, C, F] from `relative` logs [T, B, C], profiles [T, B, P], popularity [B, C] and lengths [B]."""
    covered = logs.isfinite()  # [T, B, C]
    logs = torch.where(covered, logs, 0)
    grid = profiles[..., 3:, None]  # [T, B, len(GRID), 1]
    step = (grid[:, :, :-1] - grid[:, :, 1:]).clamp(min=1e-6)
    rank = ((grid[:, :, :-1] - logs[:, :, None]) / step).clamp(0, 1).sum(2)  # [T, B, C], the logarithm to base 2
    rank = rank + 1 - (logs - grid[:, :, -1]).clamp(max=0).exp()
    entropy = profiles[..., 2:3].expand_as(logs)
    of_teachers = torch.stack([logs, logs - grid[:, :, 0], rank, entropy, covered.to(logs)])  # [5, T, B, C]
    length = lengths.clamp(max=_LONGEST).to(logs).log1p()[:, None].expand_as(logs[0])
    parts = [*of_teachers.flatten(0, 1), popularity.to(logs).log1p(), length]
    return torch.stack(parts, dim=-1)


def _net(width: int, teachers: int) -> nn.Sequential:
    last = nn.Linear(_WIDTH, teachers)
    nn.init.zeros_(last.weight)  # at first the exponents are the base's
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, _WIDTH), nn.GELU(), nn.Dropout(_DROPOUT), last)


class Gate(nn.Module):
    """The learnt exponents of T teachers.

    product: the soft targets are multiplied; else they are summed, and the exponents are weights.
    """

    mean: Tensor
    scale: Tensor
    base: Tensor

    def __init__(self, base: Tensor, product: bool) -> None:
        """base: [T] what each teacher counts without the net."""
        super().__init__()
        teachers = len(base)
        width = 5 * teachers + 2
        self.product = product
        self.register_buffer("base", base.float())
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        with torch.random.fork_rng(devices=[]):  # the same gate in each run
            torch.manual_seed(0)
            self.nets = nn.ModuleList(_net(width, teachers) for _ in range(_NETS))

    def standardise(self, values: Tensor) -> None:
        """Take mean and deviation of the features from these, [R, F]."""
        self.mean.copy_(values.mean(0))
        self.scale.copy_(values.std(0).clamp(min=1e-3))

    def standardised(self, values: Tensor) -> Tensor:
        """Features as the nets take them, [..., F]."""
        return ((values - self.mean) / self.scale).clamp(-_FARTHEST, _FARTHEST)

    def exponents(self, inputs: Tensor, covered: Tensor, nets: slice = slice(None)) -> Tensor:
        """What each teacher counts, [T, B, C]; 0 where it does not cover the candidate.

        Args:
            inputs: [B, C, F] `standardised` features. covered: [T, B, C].
            nets: those that are asked; all are, but in training.
        """
        outputs = torch.stack([net(inputs) for net in self.nets[nets]]).mean(0)  # [B, C, T]
        factor = outputs.clamp(-_STEEPEST, _STEEPEST).exp().permute(2, 0, 1)  # [T, B, C]
        return self.without_net(covered) * factor

    def without_net(self, covered: Tensor) -> Tensor:
        """What each counts by the base alone, [T, B, C]; scaled up to the same sum where some do not cover it."""
        base = self.base[:, None, None] * covered  # [T, B, C]
        return base * (self.base.sum() / base.sum(0).clamp(min=1e-9))

    def fused(self, logs: Tensor, exponents: Tensor) -> Tensor:
        """Logarithm of the target up to a constant of the example, [B, C]; -inf where no teacher covers it."""
        if self.product:
            total = (torch.where(exponents > 0, logs, 0) * exponents).sum(0)
            return total.masked_fill((exponents <= 0).all(0), -torch.inf)
        weights = exponents / exponents.sum(0).clamp(min=1e-9)
        return torch.logsumexp(torch.where(exponents > 0, logs, -torch.inf) + weights.clamp(min=1e-30).log(), 0)

    @torch.no_grad()
    def weighed(self, logs: Tensor, profiles: Tensor, popularity: Tensor, lengths: Tensor) -> Tensor:
        """Exponents [T, B, C] of `relative` logs [T, B, C]; the other arguments are those of `features`."""
        inputs = self.standardised(features(logs, profiles, popularity, lengths))
        return self.exponents(inputs, logs.isfinite())
