"""Dual Correction Distillation (Lee and Kim, CIKM 2021, arXiv 2109.03459), its user side.

What is distilled is what the student gets wrong. With both ranks of item i,

    underestimated    u_i = tanh(discrepancy x (student's rank - teacher's)), 0 where that is negative
    overestimated     o_i = tanh(discrepancy x (teacher's rank - student's)), 0 where that is negative

The paper samples items of both kinds in proportion to these. The first keep the teacher's order and the second need
only lie below them, which is RRD's relaxed loss of the two samples. Here every item takes part, with its weight:

    L = -sum_k u_k log( exp(s_k) / (sum_{j >= k, u_j > 0} exp(s_j) + sum_j o_j exp(s_j)) ) / sum_k u_k

where k and j go through the items in the teacher's order. Our choices: both ranks are among the candidates that a
teacher covers, and only the teacher's first `kd_top_items` can be underestimated. Where the student ranks these as the
teacher does, there is nothing to correct and L = 0.

The item side is left out: it ranks the users of an item, and a batch has few users that an item could be ranked for.
"""

import torch
from torch import Tensor

from recbole_prmkd.distil.baselines.ranking import normalised, ranks, teacher_ranking
from recbole_prmkd.distil.baselines.step import MASKED, Method, Step


def dcd(step: Step) -> Tensor:
    """Per example, the relaxed list-wise loss of the underestimated items above the overestimated ones, [B]."""
    columns, listed = teacher_ranking(step.target, step.mask, step.target.shape[1])  # [B, C]
    ordered = step.scores.gather(1, columns).masked_fill(~listed, MASKED)  # [B, C], in the teachers' order
    under, over = errors(ordered.detach(), listed, step.settings["kd_top_items"], step.settings["kd_rank_discrepancy"])
    return corrected(ordered, under.to(ordered), over.to(ordered))


def errors(ordered: Tensor, listed: Tensor, number: int, discrepancy: float) -> tuple[Tensor, Tensor]:
    """How far each item is under- and overestimated, both [B, C] in [0, 1]; `ordered` [B, C] as the teachers rank."""
    place = torch.arange(ordered.shape[1], device=ordered.device)  # [C], the teachers' rank
    behind = ranks(ordered, place.expand_as(ordered)) - place  # [B, C], student's - teachers'
    error = (discrepancy * behind.double()).tanh() * listed  # [B, C]
    return error.clamp(min=0) * (place < number), (-error).clamp(min=0)


def corrected(ordered: Tensor, under: Tensor, over: Tensor) -> Tensor:
    """The loss of both kinds of items in the teachers' order; [B, C] each -> [B]."""
    low = ordered.masked_fill(under == 0, MASKED)  # [B, C]
    from_here = low.flip(-1).logcumsumexp(-1).flip(-1)  # [B, C]: log of the sum over j >= k
    high = (ordered + over.log()).masked_fill(over == 0, MASKED)  # [B, C]
    positions = torch.logaddexp(from_here, high.logsumexp(-1, keepdim=True)) - low  # [B, C]
    return (normalised(under) * positions.masked_fill(under == 0, 0)).sum(-1)


METHOD = Method(dcd, lists=True, without_target=True)
