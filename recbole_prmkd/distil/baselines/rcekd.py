"""RCE-KD (Zhu and Zhang, 2025, arXiv 2509.20989): cross entropy on sets of items that bound a ranking measure.

On a set of items, the cross entropy between teacher and student bounds NDCG, if the set is closed: with an item it
holds all that the student ranks above it. The teacher's first items Q_T are no such set, so they are split by the
student's first items Q_S:

    L_1 = cross entropy on Q_S, which is closed and holds what both rank first
    L_2 = cross entropy on the rest of Q_T, and on items that the student ranks above it
    L = (1 - gamma) L_1 + gamma L_2, gamma = exp(-5 x share of Q_T that the student ranks as high)

Each cross entropy is between the softmaxes over its own set. Our choices: L_2's set holds all candidates that the
student ranks above the rest of Q_T, so it is closed among the candidates. The paper samples some of the student's first
items, more of those that stand above many of Q_T, and the share is that of Q_T among them; here it is that in Q_S. The
5 is from the authors' released settings (3 or 5). Q_S and Q_T hold up to `kd_top_items` candidates each.
"""

import torch
from torch import Tensor

from recbole_prmkd.distil.baselines.ranking import normalised, teacher_ranking
from recbole_prmkd.distil.baselines.step import MASKED, Method, Step

BETA = 5.0


def rcekd(step: Step) -> Tensor:
    """Per example, both cross entropies by what teachers and student have in common, [B]."""
    number = min(step.settings["kd_top_items"], step.scores.shape[1])
    scores = step.scores.detach()  # [B, C]; they choose the sets
    of_teachers = torch.zeros_like(step.mask).scatter(1, *teacher_ranking(step.target, step.mask, number))  # [B, C]
    of_student = (scores >= scores.topk(number, dim=1).values[:, -1:]) & step.mask  # [B, C]
    rest = of_teachers & ~of_student  # [B, C]
    lowest = scores.masked_fill(~rest, torch.inf).amin(-1, keepdim=True)  # [B, 1]; inf: no rest
    closed = (scores >= lowest) & step.mask  # [B, C]
    common = (of_teachers & of_student).sum(-1) / of_teachers.sum(-1).clamp(min=1)  # [B]
    gamma = (-BETA * common).exp()  # [B]
    first = within(of_student, step.scores, step.target)  # [B]
    return (1 - gamma) * first + gamma * within(closed, step.scores, step.target)


def within(items: Tensor, scores: Tensor, target: Tensor) -> Tensor:
    """The cross entropy over these items alone, 0 where the target is 0 on them; [B, C] each -> [B]."""
    log_student = scores.masked_fill(~items, MASKED).log_softmax(-1)  # [B, C]
    return -(normalised(target * items) * log_student).sum(-1)


METHOD = Method(rcekd, lists=True)
