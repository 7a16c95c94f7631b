"""Which items a batch is distilled on: the positives of the batch, shared by all of its examples.

An example's own positive is its target; the positives of the other examples are its negatives ("in-batch negative
items", figure of arXiv 2401.00797). `candidate_mask` goes with all of them. `sample` takes some, in large batches and
for students that must run once for each (example, candidate) pair. `ranked_first` and `distinct` add items from the
head of a ranking, about which in-batch positives say little. `history_negatives` adds what the user has just had.
`Exclusions` says which items are no negatives of an example. The masks and the added items
are our choice: we do not know whether the paper masks anything.

Axes: B examples of a batch, C candidates, P excluded (example, item) pairs of a batch, M added or sampled candidates.
Item ids are integers, 0 is padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from recbole_prmkd.storage.store import digest

PADDING = 0
Pairs = tuple[Tensor, Tensor]  # positions of examples in the batch [P] and items [P]
# Who ranks the items that `kd_candidates` adds to those of the batch.
SOURCES: dict[str, tuple[str, ...]] = {
    "batch": (),
    "all": (),  # there is nothing left to add
    "teacher_top": ("teacher",),
    "student_top": ("student",),
    "both_top": ("teacher", "student"),
}


class Exclusions:
    """Items that are no negatives of a training example: future items, its history, its target. Our choice.

    Args:
        slices: per source (start [N], stop [N], items [M]): the example's excluded items are items[start:stop].
        targets: [N] where an example's own target is excluded too.
    """

    def __init__(self, slices: Sequence[tuple[Tensor, Tensor, Tensor]], targets: Tensor | None = None) -> None:
        self._slices, self._targets = slices, targets

    def identity(self) -> dict[str, Any]:
        """What decides them, for stored results that depend on them."""
        targets = [] if self._targets is None else [self._targets]
        return {"slices": [digest(parts) for parts in self._slices], "targets": digest(targets)}

    def __call__(self, examples: Tensor, among: Tensor | None = None) -> Pairs:
        """The excluded items of these examples [B]: positions [P] in `examples`, and items [P]; all on the CPU.

        among: [C] the only items that are wanted, if not all are.
        """
        parts = [_pairs(start[examples], stop[examples], items, among) for start, stop, items in self._slices]
        if self._targets is not None:
            parts.append((torch.arange(len(examples)), self._targets[examples]))
        parts = parts or [(examples[:0], examples[:0])]
        positions, items = (torch.cat(column) for column in zip(*parts, strict=True))  # [P] both
        return positions, items


def _pairs(start: Tensor, stop: Tensor, items: Tensor, among: Tensor | None) -> Pairs:
    """items[start:stop] of each example [B] without padding, P in all: position of the example [P] and item [P]."""
    length = stop - start  # [B]
    first = length.cumsum(0) - length  # [B] where each example's items start among the P
    position = torch.repeat_interleave(length)  # [P]
    item = items.index_select(0, (start - first).index_select(0, position).add_(torch.arange(len(position))))  # [P]
    if among is None or len(item) == 0:
        return position, item
    wanted = torch.zeros(int(max(item.max(), among.max())) + 1, dtype=torch.bool).index_fill_(0, among, True)
    kept = torch.nonzero(wanted.index_select(0, item)).squeeze(1)
    return position.index_select(0, kept), item.index_select(0, kept)


def in_batch_items(targets: Tensor) -> Tensor:
    """The positives of the batch [B], each once, without padding: [C] sorted item ids (arXiv 2401.00797, figure)."""
    items = torch.unique(targets)  # with padding
    return items[items != PADDING]  # [C]


def target_columns(items: Tensor, targets: Tensor) -> Tensor:
    """The column of each example's target in any sorted candidate list, -1 for a padding target (our choice).

    Args:
        items: [C] sorted unique item ids that contain every target (in-batch ones, or with more added).
        targets: [B] item ids.

    Returns:
        columns [B], int64.

    Raises:
        ValueError: `items` is empty, unsorted or repeats an id, or a target is missing from it.
    """
    if items.dim() != 1 or len(items) == 0:
        raise ValueError(f"items must be [C] with C > 0 (all targets padding?), got {list(items.shape)}.")
    columns = torch.searchsorted(items, targets).clamp(max=len(items) - 1)  # [B]
    padding = targets == PADDING  # [B]
    found = (items[columns] == targets) | padding  # [B]
    ascending = items[1:] > items[:-1]  # [C - 1]
    if not bool(found.all() & ascending.all()):
        raise ValueError("items must be sorted, unique and contain the target of every example.")
    return columns.masked_fill(padding, -1)


def candidate_mask(items: Tensor, targets: Tensor, excluded: Pairs) -> Tensor:
    """Which candidates count for which example: all but its excluded items, its own target always (our choice).

    Excluded are the false negatives (other training positives of the example's user) and, for the history mask,
    the example's history. Needs memory for [P] and [B, C] only.

    Args:
        items: [C] sorted unique item ids that contain every target.
        targets: [B] item ids; an example with a padding target counts no candidate.
        excluded: positions of examples [P] and item ids [P]; ids that are no candidate are ignored.

    Returns:
        mask [B, C], bool, True where the candidate counts.

    Raises:
        ValueError: as `target_columns`, or the excluded positions and items are not both [P].
    """
    own = target_columns(items, targets).clamp(min=0)  # [B]
    mask = torch.ones(len(targets), len(items), dtype=torch.bool, device=items.device)  # [B, C]
    return _without(mask, items, targets, excluded, own)


def sample(items: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """One random subset of the items for all examples, without replacement: what bounds a step's cost (our choice).

    Args:
        items: [C] sorted unique item ids.
        number: how many items to sample, at least 1; all C are taken when C is smaller, so M = min(number, C).
        generator: alone decides the sample; a CPU generator gives the same on every device.

    Returns:
        [M] of the items, ascending.

    Raises:
        ValueError: `number` is below 1.
    """
    if number < 1:
        raise ValueError(f"number must be at least 1, got {number}.")
    chosen = torch.randperm(len(items), generator=generator, device=generator.device)[:number]  # [M]
    return items[chosen.sort().values.to(items.device)]


def sampled_candidates(shared: Tensor, targets: Tensor, excluded: Pairs | None = None) -> tuple[Tensor, Tensor]:
    """An example's target, and beside it the sampled items, the same for all examples (our choice).

    Args:
        shared: [M] sorted unique item ids, as from `sample`.
        targets: [B] item ids.
        excluded: as for `candidate_mask`; without it every item counts.

    Returns:
        candidates [B, 1 + M] item ids, column 0 the example's target and the others the shared items in ascending
        order, and their mask [B, 1 + M], bool: as `candidate_mask` for the target and the shared items, and False
        where a shared item is the example's own target again.

    Raises:
        ValueError: the excluded positions and items are not both [P].
    """
    candidates = torch.cat([targets[:, None], shared.expand(len(targets), -1)], dim=1)  # [B, 1 + M]
    mask = candidates != targets[:, None]  # [B, 1 + M]
    return candidates, _without(mask, shared, targets, excluded, torch.zeros_like(targets))


def _without(mask: Tensor, items: Tensor, targets: Tensor, excluded: Pairs | None, own: Tensor) -> Tensor:
    """The mask [B, W], its last columns `items` [C], without the excluded; the example's `own` column [B] stays in.

    In place. An example with a padding target counts nothing.
    """
    real = targets != PADDING  # [B]
    if excluded is not None:
        position, item = excluded
        if position.dim() != 1 or position.shape != item.shape:
            raise ValueError(
                f"excluded must be positions [P] and items [P], got {list(position.shape)} and {list(item.shape)}."
            )
        item = item.to(items.dtype)
        found = torch.searchsorted(items, item).clamp(max=len(items) - 1)  # [P]
        # A miss takes out the example's own column, which is set again: no loop over the hits, and no wait for them.
        width = mask.shape[1]
        column = torch.where(items[found] == item, found + (width - len(items)), own[position])  # [P]
        mask.view(-1)[position * width + column] = False
    return mask.scatter_(1, own[:, None], real[:, None]).logical_and_(real[:, None])


def ranked_first(scores: Tensor, number: int, excluded: Pairs) -> Tensor:
    """The items with an example's highest scores, [B, n_items] -> [B, number], without `excluded` (our choice).

    0 where no item is left.
    """
    scores = scores.detach().index_put(excluded, torch.tensor(-torch.inf).to(scores))
    scores[:, PADDING] = -torch.inf
    best = scores.topk(min(number, scores.shape[1] - 1), dim=1)
    return best.indices.masked_fill(best.values == -torch.inf, PADDING)


def history_negatives(item_seq: Tensor, targets: Tensor) -> Tensor:
    """The items of a history [B, L] that are no target: each once, 0 elsewhere (our choice).

    Args:
        item_seq: [B, L] item ids, 0 for padding.
        targets: [B] item ids; an example with a padding target has no negatives.
    """
    items = item_seq.masked_fill((item_seq == targets[:, None]) | (targets == PADDING)[:, None], PADDING)  # [B, L]
    items = items.sort(dim=1).values
    again = torch.zeros_like(items, dtype=torch.bool)
    again[:, 1:] = items[:, 1:] == items[:, :-1]
    return items.masked_fill(again, PADDING)


def distinct(added: Tensor, *before: Tensor) -> Tensor:
    """Which of an example's added candidates [B, M] are new; padding never is.

    Args:
        before: candidates of all examples [C], or of each example [B, C], masked ones among them.
    Returns:
        [B, M] bool; of equal items of an example the first counts.
    """
    there = torch.zeros_like(added, dtype=torch.bool)  # [B, M]
    for part in before:
        there |= torch.isin(added, part) if part.dim() == 1 else (added[:, :, None] == part[:, None]).any(dim=2)
    order = torch.arange(added.shape[1], device=added.device)
    earlier = (added[:, :, None] == added[:, None]) & (order[None, :] < order[:, None])  # [B, M, M]
    return ~there & ~earlier.any(dim=2) & (added != PADDING)
