"""The second view of a history that sequence-sequence contrast compares with the first, tensors in and out."""

from typing import NamedTuple

import torch
from torch import Tensor


class DroppedItems(NamedTuple):
    """Histories without some of their items.

    item_seq: [B, L] what stays, right-padded with 0; length: [B]; position: [B, L], for each position of the given
    histories that of the newest staying item up to there, -1 where there is none.
    """

    item_seq: Tensor
    length: Tensor
    position: Tensor


def drop_items(item_seq: Tensor, length: Tensor, keep: Tensor) -> DroppedItems:
    """Take items out as the official UniSRec code does.

    An unkept position removes the item BEFORE it: the item at position t stays if position t + 1 is marked as kept, and
    the newest always stays.

    Args:
        item_seq: [B, L] items, oldest first, right-padded with 0.
        length: [B] true lengths.
        keep: [B, L] bool marks.
    """
    column = torch.arange(item_seq.shape[1], device=item_seq.device)
    newest = column == length[:, None] - 1  # [B, L]
    next_kept = torch.cat([keep[:, 1:], torch.ones_like(keep[:, :1])], dim=1)
    stays = (column < length[:, None]) & (next_kept | newest)
    position = stays.long().cumsum(1) - 1  # [B, L]
    # What does not stay is written to one position behind the end, which is then cut off.
    target = torch.where(stays, position, item_seq.shape[1])
    moved = item_seq.new_zeros(len(item_seq), item_seq.shape[1] + 1).scatter(1, target, item_seq)[:, :-1]
    return DroppedItems(moved, stays.sum(1), position)
