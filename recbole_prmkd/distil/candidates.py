"""Which items a batch is distilled on: the positives of the batch, shared by all of its rows.

A row's own positive is its target; the positives of the other rows are its negatives ("in-batch negative
items", figure of arXiv 2401.00797). `candidate_mask` goes with all of them; `sample` takes some, in large
batches and for students that must run once for each (row, candidate) pair. The masks are our choice: whether the paper
masks anything is not known to us.

Axes: B batch rows, C candidates, P excluded (row, item) pairs of a batch, M sampled candidates. Item ids are integers,
0 is padding.
"""

import torch
from torch import Tensor

PADDING = 0
Pairs = tuple[Tensor, Tensor]  # rows of a batch [P] and items [P]


def in_batch_candidates(targets: Tensor, everyone: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The positives of the batch, each once, and where each row's own one stands (arXiv 2401.00797, figure).

    Args:
        targets: [B] item ids; a row whose target is padding gets column -1, and an empty `candidate_mask`.
        everyone: [N] the batch's targets, these among them, where `targets` is one process's part of it.

    Returns:
        items [C] sorted unique ids without padding, and columns [B] with `items[columns[i]] == targets[i]`.

    Raises:
        ValueError: `targets` is not one-dimensional, or holds nothing but padding.
    """
    if targets.dim() != 1:
        raise ValueError(f"targets must be [B], got {list(targets.shape)}.")
    items = torch.unique(targets if everyone is None else everyone)  # [C], with padding
    items = items[items != PADDING]  # [C]
    return items, target_columns(items, targets)


def target_columns(items: Tensor, targets: Tensor) -> Tensor:
    """The column of each row's target in any sorted candidate list, -1 for a padding target (our choice).

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
        raise ValueError("items must be sorted, unique and contain the target of every row.")
    return columns.masked_fill(padding, -1)


def candidate_mask(items: Tensor, targets: Tensor, excluded: Pairs) -> Tensor:
    """Which candidates count for which row: all but its excluded items, its own target always (our choice).

    Excluded are the false negatives (other training positives of the row's user) and, for the history mask,
    the row's history. Needs memory for [P] and [B, C] only.

    Args:
        items: [C] sorted unique item ids that contain every target.
        targets: [B] item ids; a row with a padding target counts no candidate.
        excluded: rows [P] and item ids [P]; ids that are no candidate are ignored.

    Returns:
        mask [B, C], bool, True where the candidate counts.

    Raises:
        ValueError: as `target_columns`, or the excluded rows and items are not both [P].
    """
    own = target_columns(items, targets).clamp(min=0)  # [B]
    mask = torch.ones(len(targets), len(items), dtype=torch.bool, device=items.device)  # [B, C]
    return _without(mask, items, targets, excluded, own)


def sample(items: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """One random subset of the items for all rows, drawn without replacement: what bounds a step's cost (our choice).

    Args:
        items: [C] sorted unique item ids.
        number: how many items to draw, at least 1; all C are taken when C is smaller, so M = min(number, C).
        generator: decides alone what is drawn; a CPU generator draws the same on every device.

    Returns:
        [M] of the items, ascending.

    Raises:
        ValueError: `number` is below 1.
    """
    if number < 1:
        raise ValueError(f"number must be at least 1, got {number}.")
    drawn = torch.randperm(len(items), generator=generator, device=generator.device)[:number]  # [M]
    return items[drawn.sort().values.to(items.device)]


def sampled_candidates(shared: Tensor, targets: Tensor, excluded: Pairs | None = None) -> tuple[Tensor, Tensor]:
    """A row's target, and beside it the sampled items, the same for all rows (our choice).

    Args:
        shared: [M] sorted unique item ids, as from `sample`.
        targets: [B] item ids.
        excluded: as for `candidate_mask`; without it every item counts.

    Returns:
        candidates [B, 1 + M] item ids, column 0 the row's target and the others the shared items in ascending
        order, and their mask [B, 1 + M], bool: as `candidate_mask` for the target and the shared items, and False
        where a shared item is the row's own target again.

    Raises:
        ValueError: the excluded rows and items are not both [P].
    """
    candidates = torch.cat([targets[:, None], shared.expand(len(targets), -1)], dim=1)  # [B, 1 + M]
    mask = candidates != targets[:, None]  # [B, 1 + M]
    return candidates, _without(mask, shared, targets, excluded, torch.zeros_like(targets))


def _without(mask: Tensor, items: Tensor, targets: Tensor, excluded: Pairs | None, own: Tensor) -> Tensor:
    """The mask [B, W], whose last columns are `items` [C], without the excluded; the row's `own` column [B] stays in.

    In place. A row with a padding target counts nothing.
    """
    real = targets != PADDING  # [B]
    if excluded is not None:
        row, item = excluded
        if row.dim() != 1 or row.shape != item.shape:
            raise ValueError(f"excluded must be rows [P] and items [P], got {list(row.shape)} and {list(item.shape)}.")
        item = item.to(items.dtype)
        found = torch.searchsorted(items, item).clamp(max=len(items) - 1)  # [P]
        # A miss takes out the row's own column, which is set again: without a loop over what hits, or a wait for it.
        width = mask.shape[1]
        column = torch.where(items[found] == item, found + (width - len(items)), own[row])  # [P]
        mask.view(-1)[row * width + column] = False
    return mask.scatter_(1, own[:, None], real[:, None]).logical_and_(real[:, None])
