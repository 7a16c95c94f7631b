"""Candidates: what the batch offers, what counts for each example, and the few that pairwise students score."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_prmkd.distil.candidates import (
    Exclusions,
    candidate_mask,
    history_negatives,
    in_batch_items,
    sample,
    sampled_candidates,
    target_columns,
)


def randint(high: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def pairs(excluded: Tensor) -> tuple[Tensor, Tensor]:
    """[B, P] items of each example as (example, item) pairs."""
    return torch.arange(len(excluded)).repeat_interleave(excluded.shape[1]), excluded.flatten()


ITEM = st.integers(0, 9)  # 0 is padding


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Targets [B] of up to 6 examples, some padding, and excluded items [B, P], some in no batch."""
    targets = torch.tensor(draw(st.lists(ITEM, min_size=1, max_size=6)))
    assume(bool(targets.any()))
    width = draw(st.integers(0, 5))
    excluded = draw(st.lists(st.integers(0, 12), min_size=len(targets) * width, max_size=len(targets) * width))
    return targets, torch.tensor(excluded, dtype=torch.long).view(len(targets), width)


def expected_mask(items: Tensor, targets: Tensor, excluded: Tensor) -> list[list[bool]]:
    """The definition, in plain Python."""
    return [
        [bool(target) and (item == target or item not in gone) for item in items.tolist()]
        for target, gone in zip(targets.tolist(), excluded.tolist(), strict=True)
    ]


SLICE = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(sorted)


@given(
    st.lists(st.integers(1, 9), min_size=8, max_size=8),
    st.lists(st.lists(SLICE, min_size=3, max_size=3), max_size=2),
    st.lists(st.integers(0, 2), max_size=4),
    st.none() | st.sets(st.integers(1, 12), min_size=1),
    st.none() | st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_exclusions_are_the_items_of_each_examples_slices_and_its_target(items, sources, batch, among, targets) -> None:  # type: ignore[no-untyped-def]
    """Of three examples; a batch has any of them, twice too, or none."""
    numbers = torch.tensor(items)
    slices = [(*torch.tensor(bounds).T, numbers) for bounds in sources]
    excluded = Exclusions(slices, None if targets is None else torch.tensor(targets))
    wanted = None if among is None else torch.tensor(sorted(among), dtype=torch.long)
    position, item = excluded(torch.tensor(batch, dtype=torch.long), wanted)
    expected = []
    for index, example in enumerate(batch):
        for bounds in sources:
            start, stop = bounds[example]
            expected += [(index, one) for one in items[start:stop] if among is None or one in among]
        expected += [(index, targets[example])] if targets is not None else []
    assert sorted(zip(position.tolist(), item.tolist(), strict=True)) == sorted(expected)


def test_positives_are_sorted_unique_and_without_padding() -> None:
    targets = torch.tensor([7, 3, 7, 0, 9])
    items = in_batch_items(targets)
    columns = target_columns(items, targets)
    assert items.tolist() == [3, 7, 9]
    assert columns.tolist() == [1, 0, 1, -1, 2]


@given(batches(), st.lists(ITEM, max_size=6))
def test_columns_find_each_target_among_everyones(batch: tuple[Tensor, Tensor], others: list[int]) -> None:
    targets, _ = batch
    for everyone in ([], others):  # the targets of other processes
        items = in_batch_items(torch.cat([targets, torch.tensor(everyone, dtype=torch.long)]))
        columns = target_columns(items, targets)
        assert items.tolist() == sorted({*targets.tolist(), *everyone} - {0})
        assert torch.equal(items[columns[targets > 0]], targets[targets > 0])
        assert bool((columns[targets == 0] == -1).all())


def test_mask_in_a_hand_made_batch() -> None:
    targets = torch.tensor([3, 7, 9])
    items = in_batch_items(targets)
    excluded = torch.tensor([[9, 3, 0], [0, 0, 0], [8, 7, 100]])  # own target, nothing, and ids outside of the batch
    assert candidate_mask(items, targets, pairs(excluded)).tolist() == [
        [True, True, False],
        [True, True, True],
        [True, False, True],
    ]


@given(batches(), st.sets(st.integers(1, 14), max_size=4))
def test_mask_equals_its_definition(batch: tuple[Tensor, Tensor], more: set[int]) -> None:
    targets, excluded = batch
    items = torch.tensor(sorted({*targets.tolist(), *more} - {0}))
    before = targets.clone(), excluded.clone()
    assert candidate_mask(items, targets, pairs(excluded)).tolist() == expected_mask(items, targets, excluded)
    assert torch.equal(targets, before[0]) and torch.equal(excluded, before[1])


def test_mask_takes_narrow_ids_no_exclusions_and_a_batch_of_one() -> None:
    targets = torch.tensor([4])
    assert candidate_mask(targets, targets, pairs(torch.zeros(1, 0, dtype=torch.long))).tolist() == [[True]]
    assert candidate_mask(targets, targets, pairs(torch.tensor([[4, 2]], dtype=torch.int32))).tolist() == [[True]]


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor made inside."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_mask_never_holds_examples_by_excluded_by_candidates() -> None:
    targets = randint(300, (64,), seed=1) + 1
    items = torch.arange(1, 401)
    excluded = randint(500, (64, 350), seed=2)
    with LargestTensor() as largest:
        candidate_mask(items, targets, pairs(excluded))
    assert largest.numel == 64 * 400


@given(batches(), st.integers(1, 9), st.integers(0, 5))
def test_sampled_candidates_are_the_target_and_shared_items_with_the_mask_of_these(
    batch: tuple[Tensor, Tensor], number: int, seed: int
) -> None:
    targets, excluded = batch
    items = in_batch_items(targets)
    shared = sample(items, number, torch.Generator().manual_seed(seed))
    assert shared.tolist() == sorted(set(shared.tolist()) & set(items.tolist()))
    assert len(shared) == min(number, len(items))
    full = torch.tensor(expected_mask(items, targets, excluded))[:, torch.searchsorted(items, shared)]
    once = shared != targets[:, None]  # the target stands first, and counts there alone
    for given_, counted in ((pairs(excluded), full), (None, (targets > 0)[:, None])):
        candidates, mask = sampled_candidates(shared, targets, given_)
        assert torch.equal(candidates, torch.cat([targets[:, None], shared.expand(len(targets), -1)], dim=1))
        assert torch.equal(mask, torch.cat([targets[:, None] != 0, counted & once], dim=1))


def test_sample_follows_the_generator() -> None:
    targets = torch.arange(1, 101)
    sampled = [sample(targets, 9, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(sampled[0], sampled[1]) and not torch.equal(sampled[0], sampled[2])


def test_sample_of_more_than_there_are_takes_all() -> None:
    targets = torch.tensor([3, 7, 0])
    items = in_batch_items(targets)
    excluded = pairs(torch.tensor([[7], [0], [0]]))
    candidates, mask = sampled_candidates(sample(items, 5, torch.Generator()), targets, excluded)
    assert candidates.tolist() == [[3, 3, 7], [7, 3, 7], [0, 3, 7]]
    assert mask.tolist() == [[True, False, False], [True, True, False], [False, False, False]]


def test_each_item_is_sampled_equally_often() -> None:
    items, generator = torch.arange(1, 11), torch.Generator().manual_seed(0)
    counts = torch.zeros(11)
    for _ in range(500):
        counts[sample(items, 3, generator)] += 1
    assert counts[0] == 0 and bool((counts[1:] - 150).abs().max() < 45)  # 4.4 standard deviations


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: target_columns(in_batch_items(torch.zeros(3, dtype=torch.long)), one), "padding"),
        (lambda one: target_columns(torch.tensor([1, 2]), torch.tensor([3])), "contain the target"),
        (lambda one: target_columns(torch.tensor([1, 1, 2]), one), "unique"),
        (lambda one: candidate_mask(one, one, (one, torch.ones(2, dtype=torch.long))), r"\[1\] and \[2\]"),
        (lambda one: sample(one, 0, torch.Generator()), "at least 1"),
        (lambda one: sampled_candidates(one, one, (one, one[:0])), r"\[1\] and \[0\]"),
    ],
)
def test_wrong_shapes_and_ranges_raise(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([1]))


def test_history_negatives_are_the_histories_items_once_without_the_target() -> None:
    item_seq = torch.tensor([[3, 5, 3, 2], [4, 4, 0, 0], [7, 1, 7, 7], [6, 2, 0, 0]])
    items = history_negatives(item_seq, torch.tensor([5, 9, 7, 0]))
    assert [sorted(row[row > 0].tolist()) for row in items] == [[2, 3], [4], [1], []]
    assert items.shape == item_seq.shape
