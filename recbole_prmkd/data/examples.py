"""Examples: a user, a target, and the history before it.

All of a user's histories are slices of one flat array, never one padded list per example:

    items       7 3 9 4 | 5 7 2        two users' training items, oldest first
    example 0   start 0 stop 1         history 7        target items[1] = 3
    example 2   start 0 stop 3         history 7 3 9    target items[3] = 4
    example 3   start 4 stop 5         history 5        target items[5] = 7
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_prmkd.storage.store import digest

EXAMPLE = "kd_example"  # field that carries the example's number in a training batch


@dataclass(frozen=True)
class Examples:
    """N examples (user, history, target); histories are slices of `items`.

    users, targets, start, stop: [N] int64; items: [M] int64, users' items oldest first.
    """

    users: Tensor
    targets: Tensor
    start: Tensor
    stop: Tensor
    items: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def lengths(self) -> Tensor:
        """Items before each example, [N]."""
        return self.stop - self.start

    def select(self, index: Tensor) -> "Examples":
        """The examples of these numbers."""
        return Examples(self.users[index], self.targets[index], self.start[index], self.stop[index], self.items)

    def histories(self, index: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
        """The newest `max_length` items before each example, oldest first, right-padded with 0.

        Returns:
            item_seq [B, L] with L the batch's maximum length (at least 1), and item_seq_len [B].
        """
        stop = self.stop[index]
        length = (stop - self.start[index]).clamp(max=max_length)  # [B]
        columns = torch.arange(max(int(length.max()) if len(length) else 1, 1))
        position = (stop - length)[:, None] + columns  # [B, L]
        inside = columns < length[:, None]
        items = self.items[position.clamp(max=max(len(self.items) - 1, 0))]
        return torch.where(inside, items, 0), length

    def history_numbers(self, max_length: int) -> Tensor:
        """A number of each example's newest `max_length` items, [N].

        Numbers count from 0 without a gap: equal for equal histories, smaller for shorter ones.
        """
        length = self.lengths.clamp(max=max_length)
        distinct, number = torch.unique(length, return_inverse=True)
        if len(self) == 0:
            return number
        radix = int(self.items.max()) + 1
        for column in range(int(length.max())):  # item by item: a table of all histories would be N x max_length
            if len(distinct) == len(self):
                break
            position = (self.stop - length + column).clamp(max=len(self.items) - 1)
            items = torch.where(column < length, self.items[position], 0)  # [N]
            distinct, number = torch.unique(number * radix + items, return_inverse=True)
        return number

    def renumbered(self, new_id: Tensor) -> "Examples":
        """The same examples in another item numbering; new_id [n_items]: old id -> new id, 0 -> 0."""
        return Examples(self.users, new_id[self.targets], self.start, self.stop, new_id[self.items])

    @staticmethod
    def joined(parts: Sequence["Examples"], users: Sequence[int], items: Sequence[int]) -> "Examples":
        """The examples of several data sets as those of one.

        Args:
            users, items: what to add to each part's user and item ids (to an id of 0, nothing).
        """

        def shifted(ids: Tensor, by: int) -> Tensor:
            return torch.where(ids > 0, ids + by, 0)

        before = [0, *itertools.accumulate(len(part.items) for part in parts)]
        return Examples(
            users=torch.cat([shifted(part.users, by) for part, by in zip(parts, users, strict=True)]),
            targets=torch.cat([shifted(part.targets, by) for part, by in zip(parts, items, strict=True)]),
            start=torch.cat([part.start + n for part, n in zip(parts, before, strict=False)]),
            stop=torch.cat([part.stop + n for part, n in zip(parts, before, strict=False)]),
            items=torch.cat([shifted(part.items, by) for part, by in zip(parts, items, strict=True)]),
        )

    def compact(self) -> "Examples":
        """The same examples over a flat array of their histories alone, users in the order of the examples."""
        block, inverse = torch.unique(self.start, return_inverse=True)
        size = torch.zeros_like(block).scatter_reduce(0, inverse, self.lengths, "amax")
        seen = torch.full_like(block, len(self)).scatter_reduce(0, inverse, torch.arange(len(self)), "amin")
        order = torch.argsort(seen)  # blocks by their first example
        size = size[order]
        new_start = torch.empty_like(block)
        new_start[order] = size.cumsum(0) - size
        within = torch.arange(int(size.sum())) - (size.cumsum(0) - size).repeat_interleave(size)
        items = self.items[block[order].repeat_interleave(size) + within]
        start = new_start[inverse]
        return Examples(self.users, self.targets, start, start + self.lengths, items)

    def digest(self) -> str:
        """Hash of all targets and histories, in this item numbering and order; user ids do not count."""
        compact = self.compact()
        return digest([compact.targets, compact.start, compact.stop, compact.items])
