"""Distillation Experts, of DE-RRD (Kang et al., CIKM 2020, arXiv 2012.04357), without its ranking part (RRD).

Small networks that only training has, the experts, rebuild a teacher's vector t from the student's vector s. The vector
t chooses the expert, so that the experts share the teacher's knowledge among them:

    t' = sum_e g_e expert_e(s), g = softmax((selection(t) + Gumbel noise) / temperature)
    L = |t - t'|^2, of histories and of target items

An expert is a network with one hidden layer, as wide as student and teacher on average. The temperature falls with the
epochs as (last / first)^progress, from a mixture of experts to one. Our choices:

- It ends at 0.01, where one expert has nearly all. The paper ends at 1e-10, where a near tie of two experts has huge
  gradients.
- The number of experts is 5 for every teacher. The paper searches it for each data set.
- Each teacher with vectors has its own experts, for histories and items apart. L is the mean over those that cover the
  example.
- The paper has the negative items of a batch too.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gumbel_softmax

from recbole_prmkd.distil.baselines.covered import is_covered, mean_of_covered
from recbole_prmkd.distil.baselines.step import Method, Sizes, Step

NUMBER = 5
FIRST, LAST = 1.0, 0.01  # temperatures of the selection


class Experts(nn.Module):
    """Experts that rebuild one kind of vectors of one teacher."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__()
        hidden = (student + teacher) // 2
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(student, hidden), nn.ReLU(), nn.Linear(hidden, teacher)) for _ in range(NUMBER)
        )
        self.selection = nn.Linear(teacher, NUMBER)

    def forward(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """[B, D], [B, D_t] -> [B, D_t]."""
        rebuilt = torch.stack([expert(student) for expert in self.experts], dim=1)  # [B, experts, D_t]
        chosen = gumbel_softmax(self.selection(teacher), temperature)  # [B, experts]
        return (chosen.unsqueeze(-1) * rebuilt).sum(1)


class AllExperts(nn.Module):
    """The experts of all teachers with vectors."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.histories = nn.ModuleList(Experts(sizes.width, width) for width in sizes.teachers)
        self.items = nn.ModuleList(Experts(sizes.width, width) for width in sizes.teachers)


def de(step: Step) -> Tensor:
    """Per example, the mean squared distance of the rebuilt vectors from the teachers', [B]."""
    vectors, module = step.vectors, step.module
    assert vectors is not None and isinstance(module, AllExperts)
    temperature = FIRST * (LAST / FIRST) ** step.progress
    losses, covered = [], []
    kinds = [
        (vectors.histories, module.histories, vectors.teacher_histories),
        (vectors.items, module.items, vectors.teacher_items),
    ]
    for student, all_experts, teachers in kinds:
        for experts, teacher in zip(all_experts, teachers, strict=True):
            losses.append((teacher - experts(student.float(), teacher, temperature)).square().sum(-1))  # [B]
            covered.append(is_covered(teacher))
    return mean_of_covered(losses, covered)


METHOD = Method(de, vectors=True, module=AllExperts)
