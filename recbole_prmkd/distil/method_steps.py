"""The loss of a KD method of another paper, from a batch: only what its `Method` asks for is computed.

It also owns the method's training-only parameters: they are made on the first batch, trained by the student's
optimizer, and never part of the student.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.optim import Optimizer

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.distil.baselines import Method, Sizes, Step, Vectors
from recbole_prmkd.distil.losses import kd_loss
from recbole_prmkd.distil.shown import about
from recbole_prmkd.distil.weighting import soft_targets
from recbole_prmkd.students import insight
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.teacher_cache.scores import TeacherCache

if TYPE_CHECKING:
    from recbole_prmkd.distil.objective import Candidates, Fused


class MethodSteps:
    """Computes the loss of one method.

    module: its training-only parameters or state, from the first batch on.
    """

    def __init__(
        self, method: Method, config: Config, cache: TeacherCache, train: Examples, student: StudentAdapter
    ) -> None:
        self.method, self.config, self.cache, self.train, self.student = method, config, cache, train, student
        self.epoch = 0
        self.module: nn.Module | None = None
        self._sizes: tuple[int, list[int]] = (0, [])
        self._added = False  # the module's parameters, to the optimizer
        if method.popularity:
            self._popularity = about(train, cache.n_items).popularity.to(cache.device)  # [n_items]

    def loss(
        self,
        batch: Interaction,
        positions: Tensor,
        examples: Tensor,
        candidates: "Candidates",
        teacher_scores: Tensor,
        fused: "Fused",
        student_scores: Tensor,
        temperature: float,
        again: Callable[[], Tensor],
    ) -> Tensor:
        """The method's loss of a batch, a scalar.

        Args:
            positions: [B] of the examples in the batch; examples: [B] their numbers.
            teacher_scores: [T, B, C]; student_scores: [B, C], to be divided by the temperature.
            again: computes the student's scores once more.
        """
        method, counted = self.method, fused.covered  # [B, C]
        if method.without_target:
            counted = counted.scatter(1, candidates.columns.clamp(min=0)[:, None], False)
        vectors = self._vectors(batch, positions, examples) if method.vectors else None
        if method.module is not None and self.module is None:
            self._make(*(_widths(vectors) if vectors is not None else (0, [])))

        def anew() -> Tensor:
            with insight.anew(self.student):
                return again() / temperature

        soft = soft_targets(teacher_scores, self.cache.temperature, candidates.mask) if method.each_teacher else None
        step = Step(
            scores=student_scores,
            target=fused.target,
            mask=counted,
            columns=candidates.columns,
            settings=self.config,
            epoch=self.epoch,
            progress=min(1.0, self.epoch / self.config["kd_schedule_epochs"]),
            soft=soft,
            popularity=self._popularity_of(candidates, len(examples)) if method.popularity else None,
            vectors=vectors,
            module=self.module,
            again=anew if method.again else None,
        )
        return kd_loss(student_scores, fused.target, counted, temperature, method, step)

    def join(self, optimizer: Optimizer) -> None:
        """Let the optimizer train the module's parameters too, once there are any."""
        if self.module is not None and not self._added:
            self._added = True
            parameters = list(self.module.parameters())
            if parameters:
                optimizer.add_param_group({"params": parameters})

    def state(self) -> dict[str, Any] | None:
        """The module and its sizes, for a training that goes on."""
        if self.module is None:
            return None
        width, teachers = self._sizes
        return {"width": width, "teachers": list(teachers), "weights": self.module.state_dict()}

    def restore(self, state: Mapping[str, Any], optimizer: Optimizer) -> None:
        """Put back what `state` gave, before the optimizer's own state is."""
        self._make(state["width"], state["teachers"])
        assert self.module is not None
        self.module.load_state_dict(state["weights"])
        self.join(optimizer)

    def _make(self, width: int, teachers: list[int]) -> None:
        assert self.method.module is not None
        self._sizes = width, teachers
        self.module = self.method.module(Sizes(self.student.model, width, teachers)).to(self.cache.device)

    def _popularity_of(self, candidates: "Candidates", number: int) -> Tensor:
        """Of each example's candidates, [B, C]."""
        return self._popularity[torch.cat([part.expand(number, -1) for part in candidates.parts], dim=1)]

    def _vectors(self, batch: Interaction, positions: Tensor, examples: Tensor) -> Vectors:
        targets = self.train.targets[examples].to(self.cache.device)  # [B]
        own = insight.vectors(self.student, batch, positions, targets)  # [B, D] both
        numbers, canonical = examples.cpu().numpy(), self.cache.canonical[targets]
        of_teachers = [teacher.vectors(numbers, canonical) for teacher in self.cache.teachers]
        theirs = [both for both in of_teachers if both is not None]
        return Vectors(*own, [histories for histories, _ in theirs], [items for _, items in theirs])


def _widths(vectors: Vectors) -> tuple[int, list[int]]:
    return vectors.items.shape[1], [part.shape[1] for part in vectors.teacher_items]
