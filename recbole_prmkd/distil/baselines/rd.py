"""Ranking Distillation (Tang and Wang, KDD 2018, arXiv 1809.07428): the teacher's first items are further positives.

Each listed item adds -log sigmoid(student's score), the paper's point-wise L^D. Its weight is the normalised product
of the paper's two:

    position      w^a_r proportional to exp(-r / position): the teacher is surer of its first items
    discrepancy   w^b_r = tanh(discrepancy x (student's rank - r)), 0 where the student ranks the item high enough

The paper trains with w^a alone until the student's ranks mean something: `kd_rank_warm_up` epochs here.
Our choice: both ranks are ranks among the example's candidates. The paper estimates the student's from sampled items.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from recbole_prmkd.distil.baselines.ranking import normalised, position_weights, ranks, teacher_ranking
from recbole_prmkd.distil.baselines.step import Method, Step


def rd(step: Step) -> Tensor:
    """Per example, the weighted mean of -log sigmoid(score) over the teachers' ranking, [B]."""
    columns, listed = teacher_ranking(step.target, step.mask, step.settings["kd_top_items"])  # [B, K]
    warm = step.epoch >= step.settings["kd_rank_warm_up"]
    discrepancy = step.settings["kd_rank_discrepancy"] if warm else 0.0
    weights = rd_weights(step.scores.detach(), columns, listed, step.settings["kd_rank_position"], discrepancy)
    return -(weights.to(step.scores) * logsigmoid(step.scores.gather(1, columns))).sum(-1)


def rd_weights(scores: Tensor, columns: Tensor, listed: Tensor, position: float, discrepancy: float) -> Tensor:
    """The weights of the listed items, [B, K] float64: sum 1, or all 0 where the student ranks each high enough."""
    weights = position_weights(listed, position)  # [B, K]
    if discrepancy == 0:
        return weights
    behind = ranks(scores, columns) - torch.arange(columns.shape[1], device=columns.device)  # student's - teachers'
    return normalised(weights * (discrepancy * behind.double()).tanh().clamp(min=0))


METHOD = Method(rd, lists=True, without_target=True)
