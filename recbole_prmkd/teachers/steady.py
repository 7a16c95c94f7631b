"""Few distinct shapes, for products in bfloat16 on a CPU.

oneDNN compiles a kernel for each new shape of such a product and keeps a thousand of them. With a shape of its own in
each step that costs a fifth of its time, and memory that grows over the first epochs to gigabytes.
"""

import torch
from torch import Tensor
from torch.nn import functional

_WIDTHS = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610)  # of sequences, in items


def rounded(number: int) -> int:
    """The next larger of the sizes 8, 16, ..., 256, 272, ..., 512, 544, ...: at most a sixteenth more from 128 on."""
    step = max(8, 1 << (number - 1).bit_length() >> 5)
    return -(-number // step) * step


def padded(x: Tensor, value: float = 0) -> Tensor:
    """x, [N, ...], with further rows of this value: [rounded(N), ...]."""
    return functional.pad(x, (0, 0) * (x.dim() - 1) + (0, rounded(len(x)) - len(x)), value=value)


def by_width(lengths: Tensor) -> list[tuple[Tensor, int]]:
    """Numbers of the sequences, [B] of their lengths, that are read together, and how wide they are cut."""
    widths = torch.tensor(_WIDTHS, device=lengths.device)
    place = torch.bucketize(lengths, widths)  # [B]
    groups = [(torch.nonzero(place == k).squeeze(1), int(k)) for k in place.unique()]
    return [(group, _WIDTHS[k] if k < len(_WIDTHS) else int(lengths.max())) for group, k in groups]
