"""The curriculum: hand-made ranks, pacing at its ends, nested rows, and nothing hidden that it depends on."""

import math

import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from recbole_prmkd.distil.curriculum import ORDERS, PACING, difficulty, scheduled_examples


def rows_of(number: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, 12, (number,), generator=generator)
    return length, 1 + 40 * torch.rand(number, generator=generator).mul(8).round()


def test_long_rows_of_rare_items_are_hard() -> None:
    length, popularity = torch.tensor([1, 5, 2, 9]), torch.tensor([900.0, 10.0, 50.0, 1.0])
    expected = torch.tensor([0, 2, 1, 3], dtype=torch.float64) / 3
    for mix in (0.0, 0.5, 1.0):
        torch.testing.assert_close(difficulty(length, popularity, mix), expected)


def test_mix_weighs_the_two_ranks() -> None:
    length, popularity = (
        torch.tensor([1, 2, 3]),
        torch.tensor([1.0, 10.0, 100.0]),
    )  # they contradict each other
    assert difficulty(length, popularity, 1.0).tolist() == [0, 0.5, 1]
    assert difficulty(length, popularity, 0.0).tolist() == [1, 0.5, 0]
    torch.testing.assert_close(difficulty(length, popularity, 0.7), torch.tensor([0.3, 0.5, 0.7]).double())


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
def test_ranks_equal_scipy_with_ties_and_the_logarithm(mix: float) -> None:
    length, popularity = rows_of(200)
    ranks = [(rankdata(values) - 1) / 199 for values in (length.double().numpy(), -popularity.log().double().numpy())]
    expected = torch.from_numpy(mix * ranks[0] + (1 - mix) * ranks[1])
    got = difficulty(length, popularity, mix)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert got.min() >= 0 and got.max() <= 1


def test_equal_rows_and_one_row() -> None:
    assert difficulty(torch.ones(4), torch.zeros(4), 0.5).tolist() == [0.5] * 4
    assert difficulty(torch.ones(1), torch.ones(1), 1.0).tolist() == [0]


@pytest.mark.parametrize("name", sorted(PACING))
@pytest.mark.parametrize("start", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("length", [0, 1, 7])
def test_pacing_starts_at_start_never_falls_and_ends_at_all(name: str, start: float, length: int) -> None:
    shares = [PACING[name](epoch, start, length) for epoch in range(12)]
    if length:
        assert shares[0] == pytest.approx(start, abs=1e-12)
    assert shares == sorted(shares) and all(0 < share <= 1 for share in shares)
    assert all(share == 1 for share in shares[length:])
    if start < 1:
        assert all(share < 1 for share in shares[:length])


@pytest.mark.parametrize(
    ("name", "half_way"),
    [("linear", 0.58), ("root", math.sqrt((1 + 0.16**2) / 2)), ("step", 0.16), ("exponential", 0.4)],
)
def test_pacing_half_way(name: str, half_way: float) -> None:
    assert PACING[name](5, 0.16, 10) == pytest.approx(half_way, abs=1e-12)


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_full_share_is_every_row(order: str) -> None:
    assert scheduled_examples(difficulty(*rows_of(57), 0.5), 1.0, order, seed=3).tolist() == list(range(57))


@pytest.mark.parametrize("order", sorted(ORDERS))
@pytest.mark.parametrize("name", sorted(PACING))
def test_rows_are_ascending_and_nested_as_the_share_grows(name: str, order: str) -> None:
    hard = difficulty(*rows_of(101), 0.5)
    before: set[int] = set()
    for epoch in range(9):
        share = PACING[name](epoch, 0.05, 8)
        rows = scheduled_examples(hard, share, order, seed=3).tolist()
        assert rows == sorted(set(rows)) and len(rows) == round(share * 101)
        assert before <= set(rows)
        before = set(rows)
    assert len(before) == 101


def test_easy_takes_the_easiest_and_hard_the_hardest_with_ties_by_index() -> None:
    values = torch.tensor([0.5, 0.1, 0.5, 0.9, 0.5, 0.1])
    assert scheduled_examples(values, 0.5, "easy", seed=0).tolist() == [0, 1, 5]
    assert scheduled_examples(values, 0.5, "hard", seed=0).tolist() == [0, 2, 3]
    assert scheduled_examples(values, 1e-6, "easy", seed=0).tolist() == [1]  # never none


def test_ties_go_by_index_in_a_long_list_too() -> None:
    same = torch.full((5000,), 0.5)
    for order in ("easy", "hard"):
        assert torch.equal(scheduled_examples(same, 0.1, order, seed=0), torch.arange(500))


def test_random_follows_the_seed_alone() -> None:
    hard = difficulty(*rows_of(300), 0.5)
    rows = [scheduled_examples(hard, 0.3, "random", seed=seed) for seed in (1, 1, 2)]
    state = torch.get_rng_state()  # the global state plays no part and is not touched
    again = scheduled_examples(hard.flip(0), 0.3, "random", seed=1)
    assert torch.equal(rows[0], rows[1]) and torch.equal(rows[0], again) and not torch.equal(rows[0], rows[2])
    assert torch.equal(torch.get_rng_state(), state)
    easiest = scheduled_examples(hard, 0.3, "easy", seed=1)
    assert abs(len(set(rows[0].tolist()) & set(easiest.tolist())) - 27) < 20  # chance: 90 * 0.3, deviation 3.6


@pytest.mark.parametrize("order", ["easy", "hard"])
def test_the_other_orders_do_not_use_the_seed(order: str) -> None:
    hard = difficulty(*rows_of(60), 0.5)
    assert torch.equal(scheduled_examples(hard, 0.4, order, seed=1), scheduled_examples(hard, 0.4, order, seed=2))


def test_what_cannot_be_is_refused() -> None:
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
