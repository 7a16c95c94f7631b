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
        cosines of all teachers for them [T, N, M] float32, as `TeacherCache.cosines` gives them. Both on the CPU.
    """
    teachers, n_items = len(knowledge.teachers), knowledge.n_items
    each = min(-(-number // teachers), n_items - 1)
    items = torch.arange(n_items, device=knowledge.device)
    first = torch.zeros(rows, teachers * each, dtype=torch.int64)
    cosines = torch.empty(teachers, rows, teachers * each)
    for index in tqdm(torch.arange(rows).split(max(1, _SCORES // (teachers * n_items))), desc="teachers' first items"):
        every = knowledge.cosines(index.to(knowledge.device), items)  # [T, B, n_items]
        scores = every.nan_to_num(nan=-torch.inf)
        row, item = excluded(index.to(knowledge.device))  # [P] both
        scores[:, row, item] = -torch.inf
        scores[:, :, 0] = -torch.inf
        chosen = _known(scores.topk(each, dim=2))  # [T, B, each]
        chosen = chosen.transpose(0, 1).flatten(1)  # [B, M]
        first[index] = chosen.cpu()
        cosines[:, index] = every.gather(2, chosen.expand(teachers, -1, -1)).cpu()
    return first, cosines


def _known(best: torch.return_types.topk) -> Tensor:
    """The items of a `topk`, PAD where its score is -inf."""
    return best.indices.masked_fill(best.values == -torch.inf, 0)
