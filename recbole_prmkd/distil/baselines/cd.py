"""Collaborative Distillation (Lee et al., ICDM 2019, arXiv 1911.05276): soft labels on items by the teacher's rank.

A sampled item is more or less positive, as the teacher has it, in a binary cross entropy:

    q_i = sigmoid((teacher's score + bias) / temperature)
    L = -sum over sampled i of q_i log sigmoid(s_i) + (1 - q_i) log(1 - sigmoid(s_i))

The teacher's first items are sampled most often, with a probability proportional to exp(-rank / position). Our choices:

- Nothing is sampled: each covered candidate has its probability as its weight, which is the expected loss of one draw.
- The soft target p_i of n covered candidates gives q_i = p_i / (p_i + 1/n). That is the sigmoid above at the teacher's
  own temperature, with the bias that makes q = 1/2 for an item as likely as chance.
- The student-guided form, which samples what the student ranks first, is left out.
"""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recbole_prmkd.distil.baselines.ranking import position_weights, teacher_ranking
from recbole_prmkd.distil.baselines.step import Method, Step


def cd(step: Step) -> Tensor:
    """Per example, the weighted mean over its covered candidates of the cross entropy with the soft label, [B]."""
    columns, listed = teacher_ranking(step.target, step.mask, step.target.shape[1])  # [B, C]
    weights = position_weights(listed, step.settings["kd_rank_position"])  # [B, C]
    labels = soft_labels(step.target.gather(1, columns), listed)  # [B, C]
    losses = binary_cross_entropy_with_logits(step.scores.gather(1, columns), labels, reduction="none")  # [B, C]
    return (weights.to(losses) * losses).sum(-1)


def soft_labels(target: Tensor, listed: Tensor) -> Tensor:
    """How positive each item is, in [0, 1); [B, C] -> [B, C]."""
    chance = 1 / listed.sum(-1, keepdim=True).clamp(min=1)  # [B, 1]
    return target / (target + chance)


METHOD = Method(cd, lists=True, without_target=True)
