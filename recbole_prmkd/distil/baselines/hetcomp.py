"""HetComp (Kang et al., WWW 2023, arXiv 2303.01130): several teachers, from easy to hard.

A student cannot follow an ensemble of unlike teachers at once. The paper's teachers leave checkpoints of their own
training, whose early rankings are easy. Each user's ranking goes on to a later checkpoint once the student has come
near enough, by the distance

    D = 1 - NDCG@K of the student's ranking, where the teacher's k-th item (from 0) has the gain 2^exp(-k / 10) - 1

On the way the teacher's first K need only lie above all other items (L_overall), and at the end they keep their order
(L_fine, the relaxed list-wise loss of RRD):

    L_overall = -mean_k log( exp(s_k) / (exp(s_k) + sum_{others} exp(s)) )

Checkpoints of the teachers' training are left out: there are none. Our choices instead:

- The teachers themselves are the steps. An example learns from the teacher with the least D first, then from the two
  with the least, and at last from all that cover it. The number of teachers grows evenly with the epochs.
- Teachers that teach together are ranked by the sum of their soft targets. L_fine begins when all teach, so one teacher
  alone is RRD.
- Items that the user has met are left to the student's own loss. The paper ranks them too, apart from the others.
"""

import torch
from torch import Tensor

from recbole_prmkd.distil.baselines.ranking import ranks, teacher_ranking
from recbole_prmkd.distil.baselines.rrd import relaxed
from recbole_prmkd.distil.baselines.step import MASKED, Method, Step

SCALE = 10  # of the ranks in an item's gain, as in the authors' code


def hetcomp(step: Step) -> Tensor:
    """Per example, the loss of the ranking of the teachers whose turn it is, [B]."""
    assert step.soft is not None
    soft, number = step.soft * step.mask, step.settings["kd_top_items"]  # [T, B, C]
    teaching, all_teach = turns(distances(step.scores.detach(), soft, step.mask, number), step.progress)  # [T, B], [B]
    target = (soft * teaching.unsqueeze(-1)).sum(0)  # [B, C]
    columns, listed = teacher_ranking(target, step.mask, number)  # [B, K]
    fine = relaxed(step.scores, columns, listed, step.mask)  # [B]
    return torch.where(all_teach, fine, overall(step.scores, columns, listed))


def distances(scores: Tensor, soft: Tensor, mask: Tensor, number: int) -> Tensor:
    """D of each teacher, inf where it does not cover the example; [B, C], [T, B, C] -> [T, B]."""
    teachers, size, _ = soft.shape
    columns, listed = teacher_ranking(soft.flatten(0, 1), mask.repeat(teachers, 1), number)  # [T * B, K]
    listed = listed.view(teachers, size, -1)  # [T, B, K]
    side_by_side = columns.view_as(listed).transpose(0, 1).flatten(1)  # [B, T * K]
    rank = ranks(scores, side_by_side).view(size, teachers, -1).transpose(0, 1)  # [T, B, K], the student's
    place = torch.arange(listed.shape[-1], device=scores.device)  # [K], the teacher's
    gains = (2 ** (-place / SCALE).exp() - 1) * listed  # [T, B, K]
    found = (gains * (rank < number) / (2 + rank).log2()).sum(-1)  # [T, B]
    ideal = (gains / (2 + place).log2()).sum(-1)  # [T, B]
    return torch.where(ideal > 0, 1 - found / ideal, torch.inf)


def turns(distance: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """Who teaches, [T, B] bool, and whether all do that cover the example, [B] bool."""
    covering = distance.isfinite().sum(0)  # [B]
    number = torch.minimum(1 + (progress * covering).floor(), covering)  # [B]
    order = distance.argsort(dim=0, stable=True).argsort(dim=0)  # [T, B], 0 for the nearest
    return order < number, number == covering


def overall(scores: Tensor, columns: Tensor, listed: Tensor) -> Tensor:
    """The loss of a ranking whose items need only lie above all others; [B, C], [B, K] -> [B]."""
    interesting = torch.zeros_like(scores, dtype=torch.bool).scatter(1, columns, listed)  # [B, C]
    others = scores.masked_fill(interesting, MASKED).logsumexp(-1, keepdim=True)  # [B, 1]
    chosen = scores.gather(1, columns).masked_fill(~listed, MASKED)  # [B, K]
    positions = (torch.logaddexp(chosen, others) - chosen).masked_fill(~listed, 0)  # [B, K]
    return positions.sum(-1) / listed.sum(-1).clamp(min=1)


METHOD = Method(hetcomp, lists=True, without_target=True, each_teacher=True)
