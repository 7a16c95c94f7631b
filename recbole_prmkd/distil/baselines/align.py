"""Alignment of vectors, after the embedding distillation of DLLM2Rec (Cui et al., RecSys 2024, arXiv 2405.00338).

There a linear map brings the teacher's item vectors to the student's width, and the student adds them to its own. The
served student so has the map and the teacher's vectors. Here nothing is added to what is served. A linear map that only
training has goes the other way, from the student's vectors s to the teacher's t:

    L = 1 - cosine(map(s), t), of histories and of target items

Our choices: the direction, because a target that is fixed cannot collapse to what is easy to hit; the cosine, which any
length of the teacher's vectors leaves alone; one map of each teacher for histories and items, because their product is
what scores. L is the mean over the teachers that cover the example.
"""

from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from recbole_prmkd.distil.baselines.covered import is_covered, mean_of_covered
from recbole_prmkd.distil.baselines.step import Method, Sizes, Step


class Maps(nn.Module):
    """A linear map from the student's vectors to those of each teacher with vectors."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(sizes.width, width) for width in sizes.teachers)


def align(step: Step) -> Tensor:
    """Per example, the mean of 1 - cosine between mapped and teachers' vectors, [B]."""
    vectors, module = step.vectors, step.module
    assert vectors is not None and isinstance(module, Maps)
    losses, covered = [], []
    kinds = [(vectors.histories, vectors.teacher_histories), (vectors.items, vectors.teacher_items)]
    for student, teachers in kinds:
        for to_teacher, teacher in zip(module.maps, teachers, strict=True):
            losses.append(1 - cosine_similarity(to_teacher(student.float()), teacher))  # [B]
            covered.append(is_covered(teacher))
    return mean_of_covered(losses, covered)


METHOD = Method(align, vectors=True, module=Maps)
