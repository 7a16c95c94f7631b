"""Ranking losses of other papers: numbers worked by hand, what they reduce to, and calm at every extreme."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from recbole_prmkd.distil.baselines import BASELINES, RankSettings
from recbole_prmkd.distil.baselines.dllm2rec import importance
from recbole_prmkd.distil.baselines.rd import rd_weights
from recbole_prmkd.distil.baselines.teachers_list import by_position, teachers_list
from recbole_prmkd.distil.losses import kd_loss

KINDS = sorted(BASELINES)
NEG = -torch.inf
PLAIN = RankSettings(items=3, position=1.0, discrepancy=0.5, by_position=0.3, by_confidence=0.5, by_consistency=0.1)
EQUAL = replace(PLAIN, position=1e12, discrepancy=0.0)
# One row of four candidates: the teachers' order is 2, 0, 3, 1; the student's 1, 2, 0, 3.
SCORES = torch.tensor([[0.5, 2.0, 1.0, -1.0]])
TARGET = torch.tensor([[0.3, 0.05, 0.5, 0.15]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def batch(seed: int, rows: int = 6, candidates: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Random scores, targets and a mask that hides some columns; column 0 always counts."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(rows, candidates, generator=generator)
    mask = torch.rand(rows, candidates, generator=generator) > 0.3
    mask[:, 0] = True
    target = torch.randn(rows, candidates, generator=generator).masked_fill(~mask, NEG).softmax(-1)
    return scores, target, mask


def loss_of(kind: str, scores: Tensor, target: Tensor, mask: Tensor, settings: RankSettings = PLAIN) -> Tensor:
    return kd_loss(scores, target, mask, 1.0, kind, settings)


def test_the_list_is_the_targets_order_without_masked_and_unknown_candidates() -> None:
    columns, listed = teachers_list(TARGET, ALL, 3)
    assert columns.tolist() == [[2, 0, 3]] and bool(listed.all())
    columns, listed = teachers_list(TARGET, torch.tensor([[True, True, False, True]]), 9)
    assert columns[0, :3].tolist() == [0, 3, 1] and listed.tolist() == [[True, True, True, False]]
    assert not bool(teachers_list(torch.zeros(1, 4), ALL, 3)[1].any())


def test_position_weights_by_hand_and_with_a_tiny_scale() -> None:
    total = math.exp(-1 / 2) + math.exp(-2 / 2) + math.exp(-3 / 2)
    expected = [math.exp(-rank / 2) / total for rank in (1, 2, 3)]
    assert by_position(torch.ones(1, 3, dtype=torch.bool), 2.0)[0].tolist() == pytest.approx(expected)
    assert by_position(torch.ones(1, 3, dtype=torch.bool), 1e-9)[0].tolist() == [1, 0, 0]
    assert by_position(torch.zeros(1, 3, dtype=torch.bool), 2.0)[0].tolist() == [0, 0, 0]


def test_rd_by_hand() -> None:
    # Items 2, 0, 3 have ranks 1, 2, 3 of the teachers and 2, 3, 4 of the student: one behind each, so tanh cancels.
    total = sum(math.exp(-rank) for rank in (1, 2, 3))
    losses = [math.log(1 + math.exp(-score)) for score in (1.0, 0.5, -1.0)]
    expected = sum(math.exp(-rank) / total * loss for rank, loss in zip((1, 2, 3), losses, strict=True))
    assert loss_of("rd", SCORES, TARGET, ALL).item() == pytest.approx(expected, rel=1e-6)


def test_rd_looks_only_at_items_that_the_student_ranks_too_low() -> None:
    scores = torch.tensor([[0.5, -2.0, 3.0, -1.0]])  # 2 first as the teachers say; 0 second, 3 third
    assert loss_of("rd", scores, TARGET, ALL).item() == 0
    scores = torch.tensor([[-1.5, -2.0, 3.0, -1.0]])  # 0 is third, should be second
    assert loss_of("rd", scores, TARGET, ALL).item() == pytest.approx(math.log(1 + math.exp(1.5)), rel=1e-6)
    scores = torch.tensor([[-4.0, 1.0, 0.0, -1.0]])  # 2 is second, 0 fourth, 3 third: behind by 1, 2, 0
    raw = [math.exp(-1) * math.tanh(0.5), math.exp(-2) * math.tanh(1.0), 0]
    weights = rd_weights(scores, *teachers_list(TARGET, ALL, 3), PLAIN)
    assert weights[0].tolist() == pytest.approx([weight / sum(raw) for weight in raw])


@pytest.mark.parametrize("seed", range(3))
def test_rd_with_equal_weights_is_the_mean_log_sigmoid(seed: int) -> None:
    scores, target, mask = batch(seed)
    columns, listed = teachers_list(target, mask, 3)
    expected = [-logsigmoid(row[c[is_in]]).mean() for row, c, is_in in zip(scores, columns, listed, strict=True)]
    torch.testing.assert_close(loss_of("rd", scores, target, mask, EQUAL), torch.stack(expected).mean())


def test_rrd_by_hand() -> None:
    two, zero, three, one = (math.exp(score) for score in (1.0, 0.5, -1.0, 2.0))
    positions = [
        two / (two + zero + three + one),
        zero / (zero + three + one),
        three / (three + one),
    ]
    expected = -sum(map(math.log, positions)) / 3
    assert loss_of("rrd", SCORES, TARGET, ALL).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_rrd_of_one_item_is_the_cross_entropy_of_the_teachers_first(seed: int) -> None:
    scores, target, mask = batch(seed)
    first = target.argmax(-1)
    expected = cross_entropy(scores.masked_fill(~mask, NEG), first)
    torch.testing.assert_close(loss_of("rrd", scores, target, mask, replace(PLAIN, items=1)), expected)


def test_rrd_is_higher_for_a_swap_in_the_list_and_not_for_one_behind_it() -> None:
    target = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    good = loss_of("rrd", torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]), target, mask)
    assert loss_of("rrd", torch.tensor([[2.0, 3.0, 1.0, 0.0, -1.0]]), target, mask) > good
    assert (
        loss_of("rrd", torch.tensor([[3.0, 2.0, 0.0, 1.0, -1.0]]), target, mask) > good
    )  # an uninteresting item above
    torch.testing.assert_close(loss_of("rrd", torch.tensor([[3.0, 2.0, 1.0, -1.0, 0.0]]), target, mask), good)


def test_dllm2rec_by_hand() -> None:
    position = [math.exp(-rank) for rank in (1, 2, 3)]
    confidence = [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95]
    consistent = [1, 1, 0]  # the student's first three are 1, 2, 0
    raw = [
        0.3 * p / sum(position) + 0.5 * c + 0.1 * o for p, c, o in zip(position, confidence, consistent, strict=True)
    ]
    weights = importance(SCORES, TARGET, *teachers_list(TARGET, ALL, 3), PLAIN)
    assert weights[0].tolist() == pytest.approx([weight / sum(raw) for weight in raw], rel=1e-6)
    logs = SCORES.log_softmax(-1)[0, [2, 0, 3]]
    expected = -sum(weight / sum(raw) * log for weight, log in zip(raw, logs.tolist(), strict=True))
    assert loss_of("dllm2rec", SCORES, TARGET, ALL).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("cosines", [[0.9, 0.2, -0.1, 0.6]])
def test_dllm2recs_confidence_is_exp_of_minus_the_distance(cosines: list[float]) -> None:
    distance = (1 - torch.tensor([cosines], dtype=torch.float64)) / 0.2
    target = (torch.tensor([cosines], dtype=torch.float64) / 0.2).softmax(-1)
    settings = replace(PLAIN, by_position=0.0, by_consistency=0.0)
    columns, listed = teachers_list(target, ALL, 3)
    expected = torch.exp(-distance).gather(1, columns)
    weights = importance(SCORES, target, columns, listed, settings)
    torch.testing.assert_close(weights, expected / expected.sum())


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_never_negative_and_sum_to_one(seed: int) -> None:
    scores, target, mask = batch(seed)
    target[2] = 0
    hidden = scores.masked_fill(~mask, -1e38)
    columns, listed = teachers_list(target, mask, 4)
    for weights in (
        rd_weights(hidden, columns, listed, PLAIN),
        rd_weights(hidden, columns, listed, EQUAL),
        importance(hidden, target, columns, listed, PLAIN),
    ):
        assert bool((weights >= 0).all()) and bool((weights[~listed] == 0).all())
        sums = weights.sum(-1)
        assert bool(((sums - 1).abs() < 1e-12).logical_or(sums == 0).all()) and sums[2] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_candidates_does_not_matter(kind: str) -> None:
    scores, target, mask = batch(4)
    order = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(9))
    moved = loss_of(kind, scores[:, order], target[:, order], mask[:, order])
    torch.testing.assert_close(moved, loss_of(kind, scores, target, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_candidates_could_as_well_be_absent_and_get_no_gradient(kind: str) -> None:
    scores, target, mask = batch(1, rows=1)
    short = mask[0]
    assert not bool(short.all())
    expected = loss_of(kind, scores[:, short], target[:, short], mask[:, short])
    scores = scores.masked_fill(~mask, torch.nan).requires_grad_()
    loss = loss_of(kind, scores, target, mask)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert scores.grad is not None and bool((scores.grad[~mask] == 0).all()) and bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("items", [1, 3, 20])
def test_gradcheck(kind: str, items: int) -> None:
    scores, target, mask = batch(3)
    target[2] = 0  # a row without a target
    target[3] = torch.nn.functional.one_hot(torch.tensor(0), 9)  # and one with a list of one item
    scores, target = scores.double().requires_grad_(), target.double()
    settings = replace(PLAIN, items=items)
    assert torch.autograd.gradcheck(lambda s: loss_of(kind, s, target, mask, settings), scores)


EXTREMES = {
    "huge": [[1e4, -1e4, 0.0, 5e3]],
    "all equal": [[2.0, 2.0, 2.0, 2.0]],
    "minus infinity": [[NEG, 1.0, 0.0, 2.0]],
    "nothing but minus infinity": [[NEG, NEG, NEG, NEG]],
    "plus infinity": [[torch.inf, 1.0, 0.0, 2.0]],
    "largest number": [[3e38, -3e38, 0.0, 1.0]],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", sorted(EXTREMES))
@pytest.mark.parametrize("items", [1, 3, 4])
def test_extremes_are_finite(case: str, kind: str, items: int) -> None:
    scores = torch.tensor(EXTREMES[case], requires_grad=True)
    for mask in (ALL, torch.tensor([[True, False, False, False]])):
        scores.grad = None
        loss = loss_of(kind, scores, TARGET, mask, replace(PLAIN, items=items))
        loss.backward()
        assert scores.grad is not None
        assert bool(loss.isfinite()) and bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_no_target_at_all_is_a_zero_that_can_be_backpropagated(kind: str) -> None:
    scores, target, mask = batch(7)
    scores.requires_grad_()
    loss = loss_of(kind, scores, torch.zeros_like(target), mask)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and bool((scores.grad == 0).all())


def test_settings_must_be_given() -> None:
    with pytest.raises(ValueError, match="needs settings"):
        kd_loss(*batch(0), 1.0, "rrd")
