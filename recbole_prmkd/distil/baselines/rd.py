"""Ranking Distillation (Tang and Wang, KDD 2018, arXiv 1809.07428): the teacher's first items are further positives.

Each listed item adds -log sigmoid(student's score), the paper's point-wise L^D. Its weight is the normalised product
of the paper's two:

    position      w^a_r proportional to exp(-r / position): the teacher is surer of its first items
    discrepancy   w^b_r = tanh(discrepancy x (student's rank - r)), 0 where the student ranks the item high enough

The paper trains with w^a alone until the student's ranks mean something; `discrepancy` 0 stands for that warm-up.
Our choice: both ranks are ranks among the example's candidates. The paper estimates the student's from sampled items.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from recbole_prmkd.distil.baselines.ranking import RankSettings, normalised, position_weights, teacher_ranking


def rd(scores: Tensor, target: Tensor, mask: Tensor, settings: RankSettings) -> Tensor:
    """Per example, the weighted mean of -log sigmoid(score) over the teachers' ranking; [B, C] each -> [B]."""
    columns, listed = teacher_ranking(target, mask, settings.items)  # [B, K]
    weights = rd_weights(scores.detach(), columns, listed, settings)  # [B, K]
    return -(weights.to(scores) * logsigmoid(scores.gather(1, columns))).sum(-1)


def rd_weights(scores: Tensor, columns: Tensor, listed: Tensor, settings: RankSettings) -> Tensor:
    """The weights of the listed items, [B, K] float64: sum 1, or all 0 where the student ranks each high enough."""
    weights = position_weights(listed, settings.position)  # [B, K]
    if settings.discrepancy == 0:
        return weights
    ascending = scores.sort(dim=1).values  # [B, C]
    above = scores.shape[1] - torch.searchsorted(ascending, scores.gather(1, columns), right=True)  # [B, K]
    behind = above - torch.arange(columns.shape[1], device=columns.device)  # [B, K]: student's rank - teachers'
    return normalised(weights * (settings.discrepancy * behind.double()).tanh().clamp(min=0))
