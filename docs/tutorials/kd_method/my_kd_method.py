"""A KD method of one's own: the student's first items are pulled to the teachers' first.

L = -log of the probability that the student gives to any of the teachers' first `kd_top_items` items
"""

from torch import Tensor

from recbole_prmkd.distil.baselines import Method, Step
from recbole_prmkd.distil.baselines.ranking import teacher_ranking


def my_method(step: Step) -> Tensor:
    """The loss of each example, [B]."""
    columns, listed = teacher_ranking(step.target, step.mask, step.settings["kd_top_items"])  # [B, K]
    logs = step.scores.log_softmax(-1).gather(1, columns)  # [B, K]
    return -logs.masked_fill(~listed, -1e30).logsumexp(-1)


METHOD = Method(
    my_method,
    lists=True,
    preset={"kd_candidates": "teacher_top", "kd_confidence": "uniform", "kd_consistency": "none", "kd_weight": 1.0},
)
