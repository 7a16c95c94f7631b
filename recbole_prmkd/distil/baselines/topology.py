"""Topology distillation (Kang et al., KDD 2021, arXiv 2106.08700), its full form (FTD).

What is distilled is how the vectors relate to one another, and nothing has to be as wide as the teacher's. With A the
cosine similarities of all vectors of a batch, histories and target items together,

    L = |A of the teacher - A of the student|^2

Our choices: an example has the mean over the rows of its history and its item, so that `kd_weight` means the same for
any batch. A pair with a vector that the teacher does not cover does not count. Several teachers have the mean of their
losses. A user or item that a batch has twice counts twice.

The hierarchical form (HTD), which first finds groups of vectors and compares within and between them, is left out.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from recbole_prmkd.distil.baselines.covered import is_covered, mean_of_covered
from recbole_prmkd.distil.baselines.step import Method, Step


def topology(step: Step) -> Tensor:
    """Per example, the mean squared difference of its similarities within the batch, [B]."""
    vectors = step.vectors
    assert vectors is not None
    student = torch.cat([vectors.histories, vectors.items]).float()  # [2 B, D]
    own = similarities(student)  # [2 B, 2 B]
    losses: list[Tensor] = []
    covered: list[Tensor] = []
    for pair in zip(vectors.teacher_histories, vectors.teacher_items, strict=True):
        teacher = torch.cat(pair)  # [2 B, D_t]
        known = is_covered(teacher)  # [2 B]
        squares = (similarities(teacher) - own).square() * known  # [2 B, 2 B]
        rows = squares.sum(-1) / known.sum().clamp(min=1)  # [2 B]
        losses += rows.chunk(2)
        covered += known.chunk(2)
    return mean_of_covered(losses, covered)


def similarities(vectors: Tensor) -> Tensor:
    """The cosine of each pair; [N, D] -> [N, N]."""
    directions = normalize(vectors, dim=-1)  # [N, D]
    return directions @ directions.T


METHOD = Method(topology, vectors=True)
