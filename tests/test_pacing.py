"""The curriculum: ranks as scipy gives them, pacing at its ends, nested examples, no hidden state."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from strategies import remark
from torch import Tensor

from recbole_prmkd.distil.pacing import ORDERS, PACING, difficulty, scheduled_examples

SHARE = st.floats(0.01, 1.0)


def examples_of(number: int) -> tuple[Tensor, Tensor]:
    """Lengths and popularities with ties."""
    return torch.randint(1, 12, (number,)), 1 + 40 * torch.rand(number).mul(8).round()


def levels() -> st.SearchStrategy[Tensor]:
    """Difficulties of 1 to 60 examples, with ties."""
    return st.lists(st.integers(0, 20), min_size=1, max_size=60).map(lambda numbers: torch.tensor(numbers) / 20)


def test_long_histories_of_rare_items_are_hard() -> None:
    length, popularity = torch.tensor([1, 5, 2, 9]), torch.tensor([900.0, 10.0, 50.0, 1.0])
    expected = torch.tensor([0, 2, 1, 3], dtype=torch.float64) / 3
    for mix in (0.0, 0.5, 1.0):
        torch.testing.assert_close(difficulty(length, popularity, mix), expected)


def test_mix_weighs_the_two_ranks() -> None:
    length, popularity = torch.tensor([1, 2, 3]), torch.tensor([1.0, 10.0, 100.0])  # they contradict each other
    assert difficulty(length, popularity, 1.0).tolist() == [0, 0.5, 1]
    assert difficulty(length, popularity, 0.0).tolist() == [1, 0.5, 0]
    torch.testing.assert_close(difficulty(length, popularity, 0.7), torch.tensor([0.3, 0.5, 0.7]).double())


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 300)), min_size=2, max_size=40), st.floats(0, 1))
def test_ranks_equal_scipys_with_ties_and_the_logarithm(examples: list[tuple[int, int]], mix: float) -> None:
    length, popularity = torch.tensor(examples).T
    values = length.double().numpy(), -popularity.double().log().numpy()
    ranks = [(rankdata(value) - 1) / (len(examples) - 1) for value in values]
    got = difficulty(length, popularity, mix)
    torch.testing.assert_close(got, torch.from_numpy(mix * ranks[0] + (1 - mix) * ranks[1]), rtol=0, atol=1e-12)
    assert got.min() >= 0 and got.max() <= 1


def test_equal_examples_and_a_single_one() -> None:
    assert difficulty(torch.ones(4), torch.zeros(4), 0.5).tolist() == [0.5] * 4
    assert difficulty(torch.ones(1), torch.ones(1), 1.0).tolist() == [0]


@given(SHARE, st.integers(0, 12))
def test_pacing_starts_at_start_never_falls_and_ends_at_all(start: float, length: int) -> None:
    for name, pacing in PACING.items():
        remark(name)
        shares = [pacing(epoch, start, length) for epoch in range(length + 3)]
        assert shares[0] == pytest.approx(start if length else 1, abs=1e-12)
        assert all(after >= before - 1e-12 for before, after in pairwise(shares))
        assert all(0 < share <= 1 for share in shares) and shares[length:] == [1, 1, 1]
        assert start > 0.999 or all(share < 1 for share in shares[:length])


@pytest.mark.parametrize(
    ("name", "half_way"),
    [("linear", 0.58), ("root", math.sqrt((1 + 0.16**2) / 2)), ("step", 0.16), ("exponential", 0.4)],
)
def test_pacing_half_way(name: str, half_way: float) -> None:
    assert PACING[name](5, 0.16, 10) == pytest.approx(half_way, abs=1e-12)


@given(levels(), st.lists(SHARE, max_size=6), st.integers(0, 5))
def test_examples_are_ascending_and_nested_as_the_share_grows(level: Tensor, shares: list[float], seed: int) -> None:
    for order in sorted(ORDERS):
        remark(order)
        before: set[int] = set()
        for share in [*sorted(shares), 1.0]:
            shown = scheduled_examples(level, share, order, seed).tolist()
            assert shown == sorted(set(shown)) and len(shown) == max(1, round(share * len(level)))
            assert before <= set(shown)
            before = set(shown)
        assert before == set(range(len(level)))


@given(levels(), SHARE, st.integers(0, 5))
def test_easy_takes_the_easiest_and_hard_the_hardest_with_ties_by_index(level: Tensor, share: float, seed: int) -> None:
    for order, sign in (("easy", 1), ("hard", -1)):
        shown = scheduled_examples(level, share, order, seed).tolist()
        best = sorted(range(len(level)), key=lambda index, sign=sign: (sign * level[index].item(), index))
        assert set(shown) == set(best[: len(shown)])


def test_ties_go_by_index_in_a_long_list_too() -> None:
    same = torch.full((5000,), 0.5)
    for order in ("easy", "hard"):
        assert torch.equal(scheduled_examples(same, 0.1, order, seed=0), torch.arange(500))


def test_random_follows_the_seed_alone() -> None:
    level = difficulty(*examples_of(300), 0.5)
    shown = [scheduled_examples(level, 0.3, "random", seed=seed) for seed in (1, 1, 2)]
    state = torch.get_rng_state()  # the global state plays no part and is not touched
    again = scheduled_examples(level.flip(0), 0.3, "random", seed=1)
    assert torch.equal(shown[0], shown[1]) and torch.equal(shown[0], again) and not torch.equal(shown[0], shown[2])
    assert torch.equal(torch.get_rng_state(), state)
    easiest = scheduled_examples(level, 0.3, "easy", seed=1)
    assert abs(len(set(shown[0].tolist()) & set(easiest.tolist())) - 27) < 20  # chance: 90 * 0.3, deviation 3.6


def test_wrong_shapes_and_ranges_raise() -> None:
    one = torch.ones(3)
    with pytest.raises(ValueError, match=r"both be \[N\]"):
        difficulty(one, torch.ones(4), 0.5)
    with pytest.raises(ValueError, match="mix"):
        difficulty(one, one, 1.5)
    with pytest.raises(ValueError, match="NaN"):
        difficulty(one, one * torch.nan, 0.5)
    with pytest.raises(ValueError, match="share"):
        scheduled_examples(one, 0.0, "easy", seed=0)
    with pytest.raises(ValueError, match=r"\[N\]"):
        scheduled_examples(torch.ones(2, 2), 0.5, "easy", seed=0)
    with pytest.raises(KeyError):
        scheduled_examples(one, 0.5, "unknown", seed=0)
    for epoch, start, length in [(-1, 0.5, 3), (0, 0.0, 3), (0, 1.1, 3), (0, 0.5, -1)]:
        for pacing in PACING.values():
            with pytest.raises(ValueError, match="Need epoch"):
                pacing(epoch, start, length)
