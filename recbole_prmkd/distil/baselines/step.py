"""What a KD method of another paper sees of a batch, and how it is registered.

A method is one function from a `Step` to the loss of each example. What it needs beyond scores and fused target it
says in its `Method`, and only that is computed.

Axes: B batch examples, C candidates, T teachers, D dim.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

# Score of a masked candidate: probability exactly 0, 0 * log(0) is a plain 0, and sums of exponentials stay finite.
MASKED = -1e38


class Vectors(NamedTuple):
    """Vectors of the batch's examples and of their targets; the student's have gradients.

    histories, items: [B, D] of the student. teacher_histories, teacher_items: [B, D_t] of each teacher that compares
    vectors; a zero vector: not covered.
    """

    histories: Tensor
    items: Tensor
    teacher_histories: Sequence[Tensor]
    teacher_items: Sequence[Tensor]


class Step(NamedTuple):
    """A batch.

    scores: [B, C] the student's, divided by `kd_temperature`, finite, `MASKED` where masked. target: [B, C] fused soft
    target, 0 where masked, sum 1 or 0 over C. mask: [B, C] bool, the candidates that count. columns: [B] of each
    example's true item, -1: none. settings: the configuration. epoch: from 0. progress: share of
    `kd_schedule_epochs` that are over, in [0, 1].

    Only where the `Method` asks for it:
    soft: [T, B, C] each teacher's own soft targets, 0 where it does not cover the candidate.
    popularity: [B, C] training examples that have the candidate as their target.
    vectors: of examples and targets. module: what `Method.module` has made.
    again: scores of the same candidates without gradient and dropout, by the weights that the student has when called.
    """

    scores: Tensor
    target: Tensor
    mask: Tensor
    columns: Tensor
    settings: Mapping[str, Any]
    epoch: int = 0
    progress: float = 0.0
    soft: Tensor | None = None
    popularity: Tensor | None = None
    vectors: Vectors | None = None
    module: nn.Module | None = None
    again: Callable[[], Tensor] | None = None


class Sizes(NamedTuple):
    """What a training-only module is built for: the student, its D, and each D_t of the teachers with vectors."""

    student: nn.Module
    width: int
    teachers: Sequence[int]


@dataclass(frozen=True)
class Method:
    """A KD method as a value of `kd_loss`.

    Attributes:
        loss: the loss of each example, [B], finite, with gradients for `Step.scores` or `Step.vectors`.
        lists: it learns from what the teachers rank first, so `kd_candidates` must hold that.
        without_target: its rankings hold items that the user has not met, so an example's target is no candidate.
        each_teacher, popularity, vectors, again: whether `Step` needs these.
        module: makes parameters that only training has, or a state that is kept with the training.
        preset: the settings of `kd=<name>`, of a method from another package; ours are in properties/preset/.
    """

    loss: Callable[[Step], Tensor]
    lists: bool = False
    without_target: bool = False
    each_teacher: bool = False
    popularity: bool = False
    vectors: bool = False
    again: bool = False
    module: Callable[[Sizes], nn.Module] | None = None
    preset: Mapping[str, Any] = field(default_factory=dict)
