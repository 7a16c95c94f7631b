"""Sequences of similar length together, so that little time goes into padding."""

from collections.abc import Iterator

from torch import Tensor


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
