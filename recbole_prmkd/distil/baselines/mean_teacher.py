"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017, arXiv 1703.01780): a control without knowledge from elsewhere.

The teacher is the student itself, with the moving average of its weights:

    average <- decay x average + (1 - decay) x weights, in each step with a KD loss
    L = KL(softmax(scores by the average) || softmax(scores))

Our choices: decay `kd_mean_teacher_decay`; both see the same batch, the average without dropout; no ramp-up of the
weight. What it gains over the student alone is regularisation, and no teacher is needed for that.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recbole_prmkd.distil.baselines.step import MASKED, Method, Sizes, Step


class Average(nn.Module):
    """The moving average of a student's weights, as buffers."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self._student = [sizes.student]  # in a list: it is no part of this module
        for number, weight in enumerate(self._weights()):
            self.register_buffer(str(number), weight.detach().clone())

    def _weights(self) -> list[nn.Parameter]:
        return [weight for weight in self._student[0].parameters() if weight.requires_grad]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """Move towards the student's present weights."""
        for average, weight in zip(self.buffers(), self._weights(), strict=True):
            average.lerp_(weight, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the student has the average's weights."""
        weights = self._weights()
        own = [weight.data for weight in weights]
        try:
            for weight, average in zip(weights, self.buffers(), strict=True):
                weight.data = average
            yield
        finally:
            for weight, data in zip(weights, own, strict=True):
                weight.data = data


def mean_teacher(step: Step) -> Tensor:
    """Per example, KL from the average's soft targets to the student's, [B]."""
    assert isinstance(step.module, Average) and step.again is not None
    step.module.update(step.settings["kd_mean_teacher_decay"])
    with step.module.in_place():
        target = step.again().masked_fill(~step.mask, MASKED).log_softmax(-1)  # [B, C]
    return (target.exp() * (target - step.scores.log_softmax(-1))).sum(-1)


METHOD = Method(mean_teacher, again=True, module=Average)
