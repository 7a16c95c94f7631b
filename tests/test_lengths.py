"""Groups of similar length: each sequence once, and no other way to cut them costs less."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recbole_prmkd.students.windows import least_padding
from recbole_prmkd.teachers.bucketing import by_length

# What a group costs in positions, as measured: steps of a recurrent network, and one forward pass.
STEP, FORWARD = 8, 128

LENGTHS = st.lists(st.integers(1, 6).map(lambda root: root**3), min_size=1, max_size=60)


def cost(groups, lengths):
    return sum(int(lengths[group].max()) * (len(group) + STEP) + FORWARD for group in groups)


def all_cuts(lengths):
    """Every way to cut the sorted sequences between two lengths."""
    order, sizes = lengths.sort(stable=True).indices, lengths.unique()
    for number in range(len(sizes)):
        for cuts in combinations(sizes[:-1].tolist(), number):
            yield order.tensor_split([int((lengths <= size).sum()) for size in cuts])


@given(LENGTHS)
@example([1] * 30 + [50] * 30 + [200] * 3)
def test_least_padding_is_the_cheapest_cut(numbers):
    lengths = torch.tensor(numbers)
    groups = least_padding(lengths)
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(len(lengths)))
    assert all(lengths[a].max() < lengths[b].min() for a, b in pairwise(groups))
    assert cost(groups, lengths) == min(cost(cut, lengths) for cut in all_cuts(lengths))


@pytest.mark.parametrize(("numbers", "groups"), [([3] * 5, 1), ([1, 2, 3, 4], 1), ([1] * 30 + [50] * 30, 2)])
def test_few_or_equal_sequences_are_one_group(numbers, groups):
    assert len(least_padding(torch.tensor(numbers))) == groups


@given(LENGTHS, st.integers(1, 600))
def test_batches_by_length_keep_to_the_budget_and_begin_with_the_longest(numbers, budget):
    lengths = torch.tensor(numbers)
    batches = list(by_length(lengths, budget))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)
    assert torch.equal(lengths[torch.cat(batches)], lengths.sort(descending=True).values)
