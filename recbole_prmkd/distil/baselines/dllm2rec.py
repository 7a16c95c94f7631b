"""Importance-aware ranking distillation, of DLLM2Rec (Cui et al., RecSys 2024, arXiv 2405.00338).

The teacher's first items are further positives. An item's weight is the normalised sum of the paper's three, each
times its gamma (`kd_rank_by_...`):

    position      proportional to exp(-rank / position)
    confidence    proportional to exp(-distance): there of a generated title's vector and the item's
    consistency   1 for an item that the student ranks among its first K too, else 0

Our choices:

- Teachers here generate no text, so the distance is 1 - cosine of history and item, in units of the teacher's
  temperature. exp(-distance) is then proportional to the soft target; with several teachers the fused target is taken.
- The student's first K are those among the example's candidates.
- The paper trains listed items by the loss that its student has for true ones. Here that is the softmax over the
  candidates for every student.
- The paper's embedding distillation, which adds parameters to the student, is left out.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from recbole_prmkd.distil.baselines.ranking import normalised, position_weights, teacher_ranking
from recbole_prmkd.distil.baselines.step import Method, Step


def dllm2rec(step: Step) -> Tensor:
    """Per example, the weighted mean of -log softmax(scores) over the teachers' ranking, [B]."""
    columns, listed = teacher_ranking(step.target, step.mask, step.settings["kd_top_items"])  # [B, K]
    weights = importance(step.scores.detach(), step.target, columns, listed, step.settings)  # [B, K]
    return -(weights.to(step.scores) * step.scores.log_softmax(-1).gather(1, columns)).sum(-1)


def importance(scores: Tensor, target: Tensor, columns: Tensor, listed: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """The weights of the listed items, [B, K] float64, with sum 1."""
    confidence = normalised(target.gather(1, columns).double() * listed)  # [B, K]
    least = scores.topk(columns.shape[1], dim=1).values[:, -1:]  # [B, 1]: the student's K-th
    consistent = (scores.gather(1, columns) >= least) & listed  # [B, K]
    return normalised(
        settings["kd_rank_by_position"] * position_weights(listed, settings["kd_rank_position"])
        + settings["kd_rank_by_confidence"] * confidence
        + settings["kd_rank_by_consistency"] * consistent
    )


METHOD = Method(dllm2rec, lists=True)
