"""Relaxed Ranking Distillation, of DE-RRD (Kang et al., CIKM 2020, arXiv 2012.04357), without its expert part (DE).

The list-wise (Plackett-Luce) likelihood of the teacher's order, relaxed: the K interesting items keep their order, all
uninteresting ones need only lie below them. With s_1 to s_K the student's scores in the teacher's order,

    L = -sum_k log( exp(s_k) / (sum_{j >= k} exp(s_j) + sum_{uninteresting} exp(s)) )

Our choice: the K are the teacher's first items. The paper samples them by position, which the README of the authors'
later code advises against. All other candidates are uninteresting ones, where the paper samples L of them. The sum is
divided by K, so that `kd_weight` means the same for any length.
"""

import torch
from torch import Tensor

from recbole_prmkd.distil.baselines.ranking import teacher_ranking
from recbole_prmkd.distil.baselines.step import MASKED, Method, Step


def rrd(step: Step) -> Tensor:
    """Per example, the mean negative log-likelihood of each position of the teachers' ranking, [B]."""
    columns, listed = teacher_ranking(step.target, step.mask, step.settings["kd_top_items"])  # [B, K]
    return relaxed(step.scores, columns, listed, step.mask)


def relaxed(scores: Tensor, columns: Tensor, listed: Tensor, mask: Tensor) -> Tensor:
    """The relaxed list-wise loss of any ranking of candidates [B, K], [B]."""
    interesting = torch.zeros_like(mask).scatter(1, columns, listed)  # [B, C]
    others = scores.masked_fill(interesting, MASKED).logsumexp(-1, keepdim=True)  # [B, 1]
    ordered = scores.gather(1, columns).masked_fill(~listed, MASKED)  # [B, K]
    from_here = ordered.flip(-1).logcumsumexp(-1).flip(-1)  # [B, K]: log of the sum over j >= k
    positions = (torch.logaddexp(from_here, others) - ordered).masked_fill(~listed, 0)  # [B, K]
    return positions.sum(-1) / listed.sum(-1).clamp(min=1)


METHOD = Method(rrd, lists=True, without_target=True)
