"""Sequences of similar length together, so that little time goes into padding."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# What a group costs, in positions (measured on one CPU core, 64 wide): each step of a recurrent network,
# and each pass. On a GPU padding costs less than another pass.
_STEP, _PASS = 8, 128


def by_length(lengths: Tensor, budget: int) -> Iterator[Tensor]:
    """Batches of similar length, longest first, so that a batch too large for the memory fails at once.

    Args:
        lengths: [N] of each sequence, in tokens or items; on the CPU.
        budget: tokens or items of a batch, padding included.
    Yields:
        [B] numbers of sequences, each once.
    """
    order = lengths.argsort(descending=True, stable=True)
    begin = 0
    while begin < len(order):
        size = max(1, budget // max(1, int(lengths[order[begin]])))
        yield order[begin : begin + size]
        begin += size


def least_padding(lengths: Tensor) -> list[Tensor]:
    """Groups of sequences, each to be cut to its own longest, at the least cost of padding and passes together.

    Args:
        lengths: [B] of each sequence, in items.
    Returns:
        [B'] numbers of sequences, short ones first, each once; a single group on a GPU.
    """
    if lengths.device.type != "cpu":
        return [torch.arange(len(lengths), device=lengths.device)]
    sizes, counts = np.unique(lengths.numpy(), return_counts=True)
    until = np.concatenate([[0], counts.cumsum()])  # sequences shorter than sizes[i]
    cost, start = np.zeros(len(sizes) + 1), np.zeros(len(sizes) + 1, dtype=int)
    for last, size in enumerate(sizes, start=1):  # the cheapest way to cut what is no longer than `size`
        ways = cost[:last] + size * (until[last] - until[:last] + _STEP) + _PASS
        start[last], cost[last] = ways.argmin(), ways.min()
    order, cuts, last = lengths.argsort(stable=True), [], len(sizes)
    while last:
        cuts.append(until[last] - until[start[last]])
        last = start[last]
    return list(order.split(cuts[::-1]))
