"""More candidates than the batch's positives: the items that the teachers, or the student, rank first for a row.

In-batch positives alone are mostly items that neither teacher nor student would rank high, so they say little about
the head of a ranking. Our choice; the paper has in-batch candidates alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from recbole_prmkd.distil.candidates import Pairs
from recbole_prmkd.teacher_cache.scores import TeacherCache

_SCORES = 1 << 24  # teachers x rows x items that are scored at a time

SOURCES = {"batch": (), "teacher_top": ("teacher",), "student_top": ("student",), "both_top": ("teacher", "student")}


@torch.no_grad()
def teachers_first(
    knowledge: TeacherCache, rows: int, number: int, excluded: Callable[[Tensor], Pairs]
) -> tuple[Tensor, Tensor]:
    """The items that each teacher ranks first for each training row, as many of each teacher, and all cosines of them.

    Args:
        rows: number of training rows, N.
        number: items of a row over all teachers, as many of each (fewer distinct ones where they agree); at least one.
        excluded: row numbers [B] -> their positions [P] in these B and items [P] that are no candidates of theirs.
    Returns:
        items [N, M] int64, M = teachers x ceil(number / teachers), 0 where a teacher knows too few items; and the
        cosines of all teachers for them [T, N, M] float32, as `TeacherCache.scores` gives them. Both on the CPU.
    """
    teachers, n_items = len(knowledge.teachers), knowledge.n_items
    each = min(-(-number // teachers), n_items - 1)
    items = torch.arange(n_items, device=knowledge.device)
    first = torch.zeros(rows, teachers * each, dtype=torch.int64)
    cosines = torch.empty(teachers, rows, teachers * each)
    for index in tqdm(torch.arange(rows).split(max(1, _SCORES // (teachers * n_items))), desc="teachers' first items"):
        every = knowledge.scores(index.to(knowledge.device), items)  # [T, B, n_items]
        scores = every.nan_to_num(nan=-torch.inf)
        row, item = excluded(index.to(knowledge.device))  # [P] both
        scores[:, row, item] = -torch.inf
        scores[:, :, 0] = -torch.inf
        chosen = _known(scores.topk(each, dim=2))  # [T, B, each]
        chosen = chosen.transpose(0, 1).flatten(1)  # [B, M]
        first[index] = chosen.cpu()
        cosines[:, index] = every.gather(2, chosen.expand(teachers, -1, -1)).cpu()
    return first, cosines


def first_of(scores: Tensor, number: int, excluded: Pairs) -> Tensor:
    """The items with a row's highest scores, [B, n_items] -> [B, number], without `excluded`; 0 where none is left."""
    scores = scores.detach().index_put(excluded, torch.tensor(-torch.inf).to(scores))
    scores[:, 0] = -torch.inf
    return _known(scores.topk(min(number, scores.shape[1] - 1), dim=1))


def _known(best: torch.return_types.topk) -> Tensor:
    """The items of a `topk`, PAD where its score is -inf."""
    return best.indices.masked_fill(best.values == -torch.inf, 0)


def distinct(extra: Tensor, *before: Tensor) -> Tensor:
    """Which of a row's extra candidates [B, M] are new; PAD never is.

    Args:
        before: candidates of all rows [C], or of each row [B, C], those that are masked for a row among them.
    Returns:
        [B, M] bool; of equal items in a row the first counts.
    """
    there = torch.zeros_like(extra, dtype=torch.bool)
    for part in before:
        there |= torch.isin(extra, part) if part.dim() == 1 else (extra[:, :, None] == part[:, None]).any(dim=2)
    order = torch.arange(extra.shape[1], device=extra.device)
    earlier = (extra[:, :, None] == extra[:, None]) & (order[None, :] < order[:, None])  # [B, M, M]
    return ~there & ~earlier.any(dim=2) & (extra != 0)
