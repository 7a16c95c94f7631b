"""The distillation loss between a student's candidate scores and the fused target of the teachers.

The figure of arXiv 2401.00797 names the loss (L_KD) but not its form, so all three forms are our choice.

- `kl`, the default, is 0 for a perfect student. The square of the temperature keeps its gradients alike in size at any
  temperature (Hinton et al., arXiv 1503.02531).
- `ce` is the plain cross entropy, on the scale of the student's own loss. At temperature 1 its gradients are those of
  `kl`.
- `mse` compares probabilities. It is bounded, and mild where the student is unsure.
- `baselines` has the KD methods of other papers.

Axes: B batch examples, C candidates.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import hardtanh

from recbole_prmkd.distil.baselines.step import MASKED, Method, Step

LARGEST = 1e30  # student scores / temperature are cut here, so that +-inf stays finite


def kl(log_student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Per example, KL(target || student) * temperature^2; [B, C] log-probabilities and probabilities -> [B]."""
    log_target = target.clamp(min=torch.finfo(target.dtype).tiny).log_()  # [B, C]; faster than torch.xlogy
    return (target * (log_student - log_target)).sum(-1) * -(temperature**2)


def ce(log_student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Per example, -sum of target * log student (no square of the temperature); [B, C], [B, C] -> [B]."""
    return -(target * log_student).sum(-1)


def mse(log_student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Per example, the sum over C of (target - student)^2 in probabilities; [B, C], [B, C] -> [B]."""
    return ((target - log_student.exp()) ** 2).sum(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"kl": kl, "ce": ce, "mse": mse}


def kd_loss(
    scores: Tensor,
    target: Tensor,
    mask: Tensor,
    temperature: float,
    kind: str | Method,
    step: Step | None = None,
) -> Tensor:
    """L_KD: the mean loss over the examples that have a target (named in arXiv 2401.00797, forms our choice).

    Args:
        scores: [B, C] the student's own scores; float64 stays float64, all else is computed in float32.
        target: [B, C] the fused target, summing to 1 over C. An example whose target is 0 throughout has none and is
            left out. It is detached: the teachers learn nothing here.
        mask: [B, C], bool; masked columns neither count nor get gradient.
        temperature: > 0, of the student's softmax.
        kind: a key of LOSSES, or a KD method of another paper.
        step: what such a method needs beside scores, target and mask, which are put into it here.

    Returns:
        A scalar; 0, with gradients of 0, where no example has a target.

    Raises:
        ValueError: the shapes differ, the temperature is not above 0, or the step is missing.
    """
    if scores.dim() != 2 or not scores.shape == target.shape == mask.shape:
        shapes = [list(tensor.shape) for tensor in (scores, target, mask)]
        raise ValueError(f"scores, target and mask must all be the same [B, C], got {shapes}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    if isinstance(kind, Method) and step is None:
        raise ValueError("A KD method of another paper needs a step.")
    with torch.autocast(scores.device.type, enabled=False):
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        target = torch.where(mask, target.detach().to(scores), 0)
        has_target = target.sum(-1) != 0  # [B]
        counts = mask & has_target.unsqueeze(1)  # [B, C]; an example without a target may hold anything, NaN too
        # hardtanh is clamp with a backward pass of one kernel, not four. Neither cut nor masked scores get gradient.
        scores = torch.where(counts, hardtanh(scores / temperature, -LARGEST, LARGEST), MASKED)
        if isinstance(kind, Method):
            assert step is not None
            losses = kind.loss(step._replace(scores=scores, target=target, mask=counts))  # [B]
        else:
            losses = LOSSES[kind](scores.log_softmax(-1), target, temperature)  # [B]
        return losses.masked_fill(~has_target, 0).sum() / has_target.sum().clamp(min=1)
