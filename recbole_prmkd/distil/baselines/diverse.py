"""Only the teachers that are better than the student on the example: a rule of our own, after two papers' ideas.

Zhu et al. (CIKM 2020, arXiv 2011.04106) let a gate weigh the teachers of a CTR model for each example. DiverseDistill
(Liu et al., 2024, arXiv 2402.14035) leaves out the teachers that matter little for an example. Both learn that. Here
the true item i says it, and nothing is learned:

    teacher t teaches if p_t(i) > p(i) of the student, both over the candidates that t covers
    L = KL(mean of the p_t that teach || p)

The p_t of the mean are renormalised over all candidates. An example without such a teacher has L = 0: the student is
ahead of all of them and learns it from the data alone. The student's p only compares here, it gets no gradient by that.
DiverseDistill's questions to the teachers' hidden layers are left out.
"""

import torch
from torch import Tensor

from recbole_prmkd.distil.baselines.ranking import normalised
from recbole_prmkd.distil.baselines.step import Method, Step


def diverse(step: Step) -> Tensor:
    """Per example, KL from the mean of its better teachers to the student, [B]."""
    assert step.soft is not None
    soft = step.soft * step.mask  # [T, B, C]
    log_student = step.scores.log_softmax(-1)  # [B, C]
    teaching = better(soft, log_student.detach().exp(), step.columns)  # [T, B]
    target = normalised((soft * teaching.unsqueeze(-1)).sum(0))  # [B, C]
    log_target = target.clamp(min=torch.finfo(target.dtype).tiny).log()  # [B, C]
    return (target * (log_target - log_student)).sum(-1)


def better(soft: Tensor, student: Tensor, columns: Tensor) -> Tensor:
    """Which teachers give the true item more than the student does; [T, B, C], [B, C], [B] -> bool [T, B]."""
    place = columns.clamp(min=0)[:, None]  # [B, 1]
    theirs = soft.gather(2, place.expand(len(soft), -1, -1)).squeeze(-1)  # [T, B]
    covered = (student * (soft > 0)).sum(-1)  # [T, B]: what the student gives to all that the teacher covers
    return (theirs * covered > student.gather(1, place).squeeze(1)) & (columns >= 0)


METHOD = Method(diverse, each_teacher=True)
