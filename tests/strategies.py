"""Hypothesis strategies for the pure functions of the method: scores of several teachers, and batches of a loss.

Scores lie on a grid of cosines, so that ties are frequent and no value stands on the edge of a rounding tolerance.
"""

from typing import NamedTuple

import torch
from hypothesis import currently_in_test_context, note
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

NEG, POS, NAN = -torch.inf, torch.inf, torch.nan
# What a model that has gone astray may give, beside plain scores.
EXTREME = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e4, -1e4, 3e38, -3e38, NEG, POS])


class Problem(NamedTuple):
    """Scores of several teachers for the candidates of a batch, as `distil.weighting` reads them."""

    scores: Tensor  # [T, B, C], NaN where a teacher does not cover a candidate
    temperature: Tensor  # [T]
    mask: Tensor  # [B, C]; a true item is never masked
    columns: Tensor  # [B] of the true items
    validation: Tensor  # [T]

    @property
    def known(self) -> Tensor:
        return ~self.scores.isnan()

    def of(self, teachers: list[int]) -> "Problem":
        """The same batch with these teachers, in this order."""
        return self._replace(
            scores=self.scores[teachers], temperature=self.temperature[teachers], validation=self.validation[teachers]
        )


def remark(text: str) -> None:
    """Add a line to what a failing property prints; nothing in a test with examples of its own."""
    if currently_in_test_context():
        note(text)


def cosines(*shape: int) -> st.SearchStrategy[Tensor]:
    """Numbers in [-1, 1] in steps of 0.05."""
    return arrays("int64", shape, elements=st.integers(-20, 20), fill=st.nothing()).map(_scaled)


def bools(*shape: int) -> st.SearchStrategy[Tensor]:
    return arrays(bool, shape, elements=st.booleans(), fill=st.nothing()).map(torch.from_numpy)


@st.composite
def masks(draw: st.DrawFn, size: int, width: int) -> tuple[Tensor, Tensor]:
    """A mask [B, C] and a column [B] of each example that it never hides."""
    columns = torch.tensor(draw(st.lists(st.integers(0, width - 1), min_size=size, max_size=size)))
    return draw(bools(size, width)).scatter(1, columns[:, None], True), columns


@st.composite
def problems(draw: st.DrawFn, least: int = 1, most: int = 4, gaps: bool = False) -> Problem:
    """From `least` to `most` teachers, up to 3 examples and 6 candidates.

    gaps: some teachers do not cover some candidates, or a whole example.
    """
    number, size, width = draw(st.integers(least, most)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    scores = draw(cosines(number, size, width))
    if gaps:
        covered = draw(bools(number, size, width)) & draw(bools(number, size, 1))
        scores = scores.masked_fill(~covered, NAN)
    mask, columns = draw(masks(size, width))
    temperature = draw(st.lists(st.sampled_from([0.07, 0.5, 1.0, 2.0]), min_size=number, max_size=number))
    validation = draw(st.lists(st.sampled_from([0.0, 0.01, 0.05, 0.06]), min_size=number, max_size=number))
    return Problem(scores, torch.tensor(temperature), mask, columns, torch.tensor(validation))


class Batch(NamedTuple):
    """What `kd_loss` reads."""

    scores: Tensor  # [B, C]
    target: Tensor  # [B, C], sums to 1 over the candidates that count, or is 0 throughout
    mask: Tensor  # [B, C]


@st.composite
def batches(draw: st.DrawFn, empty: bool = False) -> Batch:
    """Up to 4 examples with up to 6 candidates; the target is 0 for some, with `empty` for all of some examples."""
    size, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    scores = 4 * draw(cosines(size, width))
    ranks = st.lists(st.integers(-20, 20), min_size=width, max_size=width, unique=True)  # a ranking without ties
    raw = torch.tensor(draw(st.lists(ranks, min_size=size, max_size=size))) / 5
    mask, true = draw(masks(size, width))
    possible = mask & draw(bools(size, width)).scatter(1, true[:, None], True)
    target = raw.masked_fill(~possible, NEG).softmax(-1)
    if empty:
        target = target * draw(bools(size, 1))
    return Batch(scores, target, mask)


def _scaled(numbers) -> Tensor:  # type: ignore[no-untyped-def]
    return torch.from_numpy(numbers).float() / 20
