"""Contrastive losses of pre-training, tensors in and tensors out.

All are InfoNCE over the cosines of a batch, divided by a temperature: each row's own key against the keys of the
other rows. They differ in what a key of the same target counts as, since it is no true negative:

- `zero`: its logit is set to 0, so it adds exp(0) = 1 to the denominator (the official UniSRec code);
- `mask`: it is left out;
- `keep`: it is a negative like any other (the official Recformer code).
"""

import torch
from torch import Tensor
from torch.nn import functional

SAME_TARGET = ("zero", "mask", "keep")


def in_batch_scores(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """Cosine / temperature of each query with each key: [R, D], [R, D] -> [R, R]; the diagonal is each row's own."""
    return functional.normalize(queries, dim=-1) @ functional.normalize(keys, dim=-1).T / temperature


def info_nce(scores: Tensor, targets: Tensor, same_target: str) -> Tensor:
    """Mean cross-entropy of each row's own key among the batch's.

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
