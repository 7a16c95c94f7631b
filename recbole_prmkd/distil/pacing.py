"""Which training examples an epoch shows: their difficulty, the share that is shown, and the order in which it grows.

The figure of arXiv 2401.00797 gives the two criteria (length of the history, popularity of its items) and the direction
(easier to harder). Formulas and pacing are our choice.

- Order: `easy` is the paper's. `random` (same pacing, random examples) and `hard` are controls, without which no claim
  about a curriculum stands (Wu et al., ICLR 2021).
- Pacing: `root` adds examples fast at first (Platanios et al., NAACL 2019), `linear` evenly, `exponential` slowly at
  first, `step` all at once (the last two after Hacohen and Weinshall, ICML 2019).

Everything is a pure function of its arguments, so resumed and distributed runs agree. Axes: N training examples.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def difficulty(length: Tensor, popularity: Tensor, mix: float) -> Tensor:
    """mix * rank01(length) + (1 - mix) * rank01(-log popularity): long histories of rare items are hard.

    The two criteria are those of arXiv 2401.00797 (figure). Ranks and their mix are our choice. The logarithm does not
    change ranks, so it is not taken, and a popularity of 0 is allowed.

    Args:
        length: [N] length of each example's history.
        popularity: [N] mean number of interactions of the items in it, any unit.
        mix: in [0, 1]; 1 is length alone, 0 popularity alone.

    Returns:
        [N] float64 in [0, 1]; ties share their average rank.

    Raises:
        ValueError: the shapes differ, mix is out of range, or a value is NaN.
    """
    if length.dim() != 1 or length.shape != popularity.shape:
        shapes = [list(length.shape), list(popularity.shape)]
        raise ValueError(f"length and popularity must both be [N], got {shapes}.")
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be in [0, 1], got {mix}.")
    if bool(length.isnan().any() | popularity.isnan().any()):
        raise ValueError("length and popularity must not hold NaN.")
    return mix * _rank01(length) + (1 - mix) * (1 - _rank01(popularity))


def linear(epoch: int, start: float, length: int) -> float:
    """start + (1 - start) * epoch / length."""
    return start + (1 - start) * _progress(epoch, start, length)


def root(epoch: int, start: float, length: int, power: float = 2.0) -> float:
    """(start^p + (1 - start^p) * epoch / length)^(1/p), p = 2 (Platanios et al., NAACL 2019)."""
    return float((start**power + (1 - start**power) * _progress(epoch, start, length)) ** (1 / power))


def step(epoch: int, start: float, length: int) -> float:
    """start until epoch length, then 1 (single step pacing of Hacohen and Weinshall, ICML 2019)."""
    return start if _progress(epoch, start, length) < 1 else 1.0


def exponential(epoch: int, start: float, length: int) -> float:
    """start^(1 - epoch / length), the same factor each epoch (after Hacohen and Weinshall, ICML 2019)."""
    return float(start ** (1 - _progress(epoch, start, length)))


# (epoch >= 0, start share in (0, 1], length >= 0 in epochs) -> share in (0, 1]: start at epoch 0, 1 from
# epoch length on. ValueError outside of these ranges. All are our choice.
PACING: dict[str, Callable[[int, float, int], float]] = {
    "linear": linear,
    "root": root,
    "step": step,
    "exponential": exponential,
}


def scheduled_examples(difficulty: Tensor, share: float, order: str, seed: int) -> Tensor:
    """The examples that an epoch shows; a larger share shows the same ones and more (our choice).

    Args:
        difficulty: [N], of `difficulty`; ties go by index.
        share: in (0, 1], of PACING.
        order: a key of ORDERS: `easy` or `hard` ones first, or a `random` permutation that seed alone fixes.
        seed: of the random order, the other two do not use it.

    Returns:
        Indices of examples, int64, ascending: share * N rounded to the nearest number, at least one.

    Raises:
        ValueError: difficulty is not [N], or share is out of range.
    """
    if difficulty.dim() != 1:
        raise ValueError(f"difficulty must be [N], got {list(difficulty.shape)}.")
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}.")
    number = max(1, round(share * len(difficulty)))
    return ORDERS[order](difficulty, seed)[:number].sort().values


def _easy(difficulty: Tensor, seed: int) -> Tensor:
    return difficulty.argsort(stable=True)


def _hard(difficulty: Tensor, seed: int) -> Tensor:
    return difficulty.argsort(stable=True, descending=True)


def _random(difficulty: Tensor, seed: int) -> Tensor:
    permutation = torch.randperm(len(difficulty), generator=torch.Generator().manual_seed(seed))
    return permutation.to(difficulty.device)


ORDERS: dict[str, Callable[[Tensor, int], Tensor]] = {"easy": _easy, "hard": _hard, "random": _random}


def _progress(epoch: int, start: float, length: int) -> float:
    """epoch / length, 1 from epoch length on."""
    if epoch < 0 or length < 0 or not 0 < start <= 1:
        raise ValueError(f"Need epoch, length >= 0 and 0 < start <= 1, got {epoch}, {length}, {start}.")
    return epoch / length if epoch < length else 1.0


def _rank01(values: Tensor) -> Tensor:
    """[N] average ranks, scaled to 0..1 (0 if N is 1)."""
    _, group, size = torch.unique(values, return_inverse=True, return_counts=True)
    rank = size.cumsum(0).double() - (size + 1) / 2  # [groups], from 0
    scaled: Tensor = rank[group] / max(len(values) - 1, 1)  # [N]
    return scaled
