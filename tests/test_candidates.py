"""Candidates: what the batch offers, what counts for each row, and the few that pair-wise students score."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_prmkd.distil.candidates import (
    candidate_mask,
    in_batch_candidates,
    sample,
    sampled_candidates,
    target_columns,
)


def randint(high: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def pairs(excluded: Tensor) -> tuple[Tensor, Tensor]:
    """[B, P] items of each row as (row, item) pairs."""
    return torch.arange(len(excluded)).repeat_interleave(excluded.shape[1]), excluded.flatten()


def expected_mask(items: Tensor, targets: Tensor, excluded: Tensor) -> list[list[bool]]:
    """The definition, in plain Python."""
    return [
        [bool(target) and (item == target or item not in gone) for item in items.tolist()]
        for target, gone in zip(targets.tolist(), excluded.tolist(), strict=True)
    ]


def test_positives_are_sorted_unique_and_without_padding() -> None:
    items, columns = in_batch_candidates(torch.tensor([7, 3, 7, 0, 9]))
    assert items.tolist() == [3, 7, 9]
    assert columns.tolist() == [1, 0, 1, -1, 2]


def test_columns_find_each_target() -> None:
    targets = randint(50, (200,), seed=0) + 1
    items, columns = in_batch_candidates(targets)
    assert torch.equal(items[columns], targets)
    assert items.tolist() == sorted(set(targets.tolist()))


def test_mask_in_a_hand_made_batch() -> None:
    targets = torch.tensor([3, 7, 9])
    items, _ = in_batch_candidates(targets)
    excluded = torch.tensor([[9, 3, 0], [0, 0, 0], [8, 7, 100]])  # own target, nothing, and ids outside of the batch
    assert candidate_mask(items, targets, pairs(excluded)).tolist() == [
        [True, True, False],
        [True, True, True],
        [True, False, True],
    ]


@pytest.mark.parametrize("seed", range(5))
def test_mask_equals_its_definition(seed: int) -> None:
    targets = randint(30, (40,), seed)  # some are padding
    in_batch, _ = in_batch_candidates(targets)
    more = torch.unique(torch.cat([in_batch, torch.tensor([31, 35, 50])]))
    excluded = randint(60, (40, 25), seed + 100)
    for items in (in_batch, more):
        assert candidate_mask(items, targets, pairs(excluded)).tolist() == expected_mask(items, targets, excluded)


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


def test_mask_never_holds_rows_by_excluded_by_candidates() -> None:
    targets = randint(300, (64,), seed=1) + 1
    items = torch.arange(1, 401)
    excluded = randint(500, (64, 350), seed=2)
    with LargestTensor() as largest:
        candidate_mask(items, targets, pairs(excluded))
    assert largest.numel == 64 * 400


def test_input_stays_as_it_was() -> None:
    targets, excluded = randint(9, (5,), seed=3) + 1, randint(9, (5, 4), seed=4)
    before = targets.clone(), excluded.clone()
    candidate_mask(in_batch_candidates(targets)[0], targets, pairs(excluded))
    assert torch.equal(targets, before[0]) and torch.equal(excluded, before[1])


def test_sample_has_the_target_first_and_shared_items_after() -> None:
    targets = randint(100, (32,), seed=5) + 1
    items, _ = in_batch_candidates(targets)
    candidates, mask = sampled_candidates(sample(items, 8, torch.Generator().manual_seed(0)), targets)
    assert candidates.shape == mask.shape == (32, 9)
    assert torch.equal(candidates[:, 0], targets)
    shared = candidates[0, 1:]
    assert torch.equal(candidates[:, 1:], shared.expand(32, -1))
    assert shared.tolist() == sorted(set(shared.tolist())) and set(shared.tolist()) <= set(items.tolist())
    assert torch.equal(mask[:, 1:], candidates[:, 1:] != targets.unsqueeze(1)) and bool(mask[:, 0].all())
    assert not bool(mask.all())  # some row met its own target again


@pytest.mark.parametrize("seed", range(5))
def test_sample_has_the_mask_of_its_items(seed: int) -> None:
    targets = randint(30, (40,), seed)  # some are padding
    items, _ = in_batch_candidates(targets)
    excluded = randint(40, (40, 25), seed + 100)
    candidates, mask = sampled_candidates(
        sample(items, 9, torch.Generator().manual_seed(seed)), targets, pairs(excluded)
    )
    full = torch.tensor(expected_mask(items, targets, excluded))
    shared = full[:, torch.searchsorted(items, candidates[0, 1:])] & (candidates[:, 1:] != targets[:, None])
    assert torch.equal(mask, torch.cat([targets[:, None] != 0, shared], dim=1))


def test_sample_follows_the_generator() -> None:
    targets = torch.arange(1, 101)
    drawn = [sample(targets, 9, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_sample_of_more_than_there_are_takes_all() -> None:
    targets = torch.tensor([3, 7, 0])
    items, _ = in_batch_candidates(targets)
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
        (lambda one: in_batch_candidates(torch.zeros(3, dtype=torch.long)), "padding"),
        (lambda one: in_batch_candidates(torch.ones(2, 2, dtype=torch.long)), r"must be \[B\]"),
        (lambda one: target_columns(torch.tensor([1, 2]), torch.tensor([3])), "contain the target"),
        (lambda one: target_columns(torch.tensor([1, 1, 2]), one), "unique"),
        (lambda one: candidate_mask(one, one, (one, torch.ones(2, dtype=torch.long))), r"\[1\] and \[2\]"),
        (lambda one: sample(one, 0, torch.Generator()), "at least 1"),
        (lambda one: sampled_candidates(one, one, (one, one[:0])), r"\[1\] and \[0\]"),
    ],
)
def test_what_cannot_be_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call(torch.tensor([1]))
