"""Contrastive losses of pre-training, tensors in and tensors out.

All are InfoNCE over the cosines of a batch, divided by a temperature: each example's own key against the keys of the
other examples. They differ in what a key of the same target counts as, since it is no true negative:

- `zero`: its logit is set to 0, so it adds exp(0) = 1 to the denominator (the official UniSRec code);
- `mask`: it is left out;
- `keep`: it is a negative like any other (the official Recformer code).
"""

import torch
from torch import Tensor
from torch.nn import functional

SAME_TARGET = ("zero", "mask", "keep")


def cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosine of each query with each key: [B, D], [C, D] -> [B, C]."""
    return _unit(queries) @ _unit(keys).T


def in_batch_scores(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosine / temperature of each query with each key: [R, D], [R, D] -> [R, R]; the diagonal holds the own keys."""
    return cosines(queries, keys) / temperature


def _unit(vectors: Tensor) -> Tensor:
    """Unit vectors; half precision becomes float32, and its least length 1e-4 in place of torch's 1e-12.

    In float16 that is 0, so that a zero vector, such as the padding's, would be NaN, and its gradient infinite.
    """
    half = vectors.dtype in (torch.float16, torch.bfloat16)
    return functional.normalize(vectors.float(), dim=-1, eps=1e-4) if half else functional.normalize(vectors, dim=-1)


def info_nce(scores: Tensor, targets: Tensor, same_target: str) -> Tensor:
    """Mean cross-entropy of each example's own key among the batch's.

    Args:
        scores: [R, R], what `in_batch_scores` gave.
        targets: [R] item ids.
        same_target: one of `SAME_TARGET`.
    Raises:
        ValueError: another word.
    """
    own = torch.arange(len(targets), device=targets.device)
    if same_target not in SAME_TARGET:
        raise ValueError(f"same_target {same_target!r} is not one of {SAME_TARGET}")
    if same_target != "keep":
        same = targets[:, None] == targets
        same.fill_diagonal_(False)
        scores = scores.masked_fill(same, 0.0 if same_target == "zero" else -torch.inf)
    return functional.cross_entropy(scores.float(), own)
