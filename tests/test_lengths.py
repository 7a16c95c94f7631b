"""Groups of similar length: each sequence once, and no other way to cut them costs less."""

from itertools import combinations, pairwise

import pytest
import torch

from recbole_prmkd.students import bucketing as module
from recbole_prmkd.students.bucketing import least_padding


@pytest.mark.parametrize(("step", "more", "wanted"), [(0, 0, 8), (8, 128, 2), (2, 20, 4), (0, 10**6, 1)])
def test_least_padding_is_the_cheapest_cut(step, more, wanted, monkeypatch):
    monkeypatch.setattr(module, "_STEP", step)
    monkeypatch.setattr(module, "_PASS", more)
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (40,), generator=draw) ** 2

    def cost(groups):
        return sum(int(lengths[group].max()) * (len(group) + step) + more for group in groups)

    groups = least_padding(lengths)
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(40))
    assert all(lengths[a].max() < lengths[b].min() for a, b in pairwise(groups))
    order, sizes = lengths.sort(stable=True).indices, lengths.unique()
    cheapest = min(
        cost([part for part in order.tensor_split([int((lengths <= sizes[i]).sum()) for i in cuts]) if len(part)])
        for number in range(len(sizes))
        for cuts in combinations(range(len(sizes) - 1), number)
    )
    assert cost(groups) == cheapest
    assert len(groups) == wanted


def test_sequences_of_one_length_are_one_group():
    (group,) = least_padding(torch.full((5,), 3))
    assert torch.equal(group, torch.arange(5))
