"""Ranking losses of other papers: numbers worked by hand, and what they reduce to; `test_losses` has the rest."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import NEG, Batch, batches, cosines
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from recbole_prmkd.distil.baselines import BASELINES, Step
from recbole_prmkd.distil.baselines.dllm2rec import importance
from recbole_prmkd.distil.baselines.ranking import position_weights, teacher_ranking
from recbole_prmkd.distil.baselines.rd import rd_weights
from recbole_prmkd.distil.losses import kd_loss
from recbole_prmkd.recbole_host.keys import defaults

Settings = dict[str, Any]

PLAIN = {**defaults(), "kd_top_items": 3, "kd_rank_discrepancy": 0.5, "kd_rank_warm_up": 0}
EQUAL = {**PLAIN, "kd_rank_position": 1e12, "kd_rank_discrepancy": 0.0}
# One example with four candidates: the teachers' order is 2, 0, 3, 1; the student's 1, 2, 0, 3.
SCORES = torch.tensor([[0.5, 2.0, 1.0, -1.0]])
TARGET = torch.tensor([[0.3, 0.05, 0.5, 0.15]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def loss_of(kind: str, scores: Tensor, target: Tensor, mask: Tensor, settings: Settings = PLAIN) -> Tensor:
    step = Step(scores, target, mask, columns=target.argmax(-1), settings=settings)
    return kd_loss(scores, target, mask, 1.0, BASELINES[kind], step)


@given(batches(empty=True), st.integers(1, 8))
def test_the_ranking_is_the_targets_order_over_what_counts(batch: Batch, number: int) -> None:
    _, target, mask = batch
    columns, listed = teacher_ranking(target.masked_fill(~mask, 2.0), mask, number)
    for row, (values, counts) in enumerate(zip(target.tolist(), mask.tolist(), strict=True)):
        covered = [column for column, value in enumerate(values) if counts[column] and value > 0]
        best = sorted(covered, key=lambda column: -values[column])[:number]
        assert columns[row][listed[row]].tolist() == best
        assert bool(listed[row, : len(best)].all())


def test_position_weights_by_hand_and_with_a_tiny_scale() -> None:
    total = math.exp(-1 / 2) + math.exp(-2 / 2) + math.exp(-3 / 2)
    expected = [math.exp(-rank / 2) / total for rank in (1, 2, 3)]
    assert position_weights(torch.ones(1, 3, dtype=torch.bool), 2.0)[0].tolist() == pytest.approx(expected)
    assert position_weights(torch.ones(1, 3, dtype=torch.bool), 1e-9)[0].tolist() == [1, 0, 0]
    assert position_weights(torch.zeros(1, 3, dtype=torch.bool), 2.0)[0].tolist() == [0, 0, 0]


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
    weights = rd_weights(scores, *teacher_ranking(TARGET, ALL, 3), 1.0, 0.5)
    assert weights[0].tolist() == pytest.approx([weight / sum(raw) for weight in raw])


@given(batches())
def test_rd_with_equal_weights_is_the_mean_log_sigmoid(batch: Batch) -> None:
    scores, target, mask = batch
    columns, listed = teacher_ranking(target, mask, 3)
    expected = [-logsigmoid(row[c[is_in]]).mean() for row, c, is_in in zip(scores, columns, listed, strict=True)]
    torch.testing.assert_close(loss_of("rd", scores, target, mask, EQUAL), torch.stack(expected).mean())


def test_rrd_by_hand() -> None:
    two, zero, three, one = (math.exp(score) for score in (1.0, 0.5, -1.0, 2.0))
    positions = [two / (two + zero + three + one), zero / (zero + three + one), three / (three + one)]
    expected = -sum(map(math.log, positions)) / 3
    assert loss_of("rrd", SCORES, TARGET, ALL).item() == pytest.approx(expected, rel=1e-6)


@given(batches())
def test_rrd_equals_its_definition(batch: Batch) -> None:
    scores, target, mask = batch
    expected = 0.0
    for score, aim, counts in zip(scores.double(), target, mask, strict=True):
        candidates = counts.nonzero().flatten().tolist()
        ranked = sorted((column for column in candidates if aim[column] > 0), key=lambda column, aim=aim: -aim[column])
        interesting = ranked[: PLAIN["kd_top_items"]]
        others = set(candidates) - set(interesting)
        for k, column in enumerate(interesting):
            below = score[[*interesting[k:], *others]].exp().sum()
            expected -= (score[column].exp() / below).log().item() / len(interesting) / len(scores)
    assert loss_of("rrd", scores, target, mask).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(batches())
def test_rrd_of_one_item_is_the_cross_entropy_of_the_teachers_first(batch: Batch) -> None:
    scores, target, mask = batch
    expected = cross_entropy(scores.masked_fill(~mask, NEG), target.argmax(-1))
    torch.testing.assert_close(loss_of("rrd", scores, target, mask, {**PLAIN, "kd_top_items": 1}), expected)


def test_rrd_is_higher_for_a_swap_in_the_ranking_and_not_for_one_behind_it() -> None:
    target = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]])
    mask = torch.ones(1, 5, dtype=torch.bool)
    good = loss_of("rrd", torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]]), target, mask)
    assert loss_of("rrd", torch.tensor([[2.0, 3.0, 1.0, 0.0, -1.0]]), target, mask) > good
    above = torch.tensor([[3.0, 2.0, 0.0, 1.0, -1.0]])  # an uninteresting item stands above an interesting one
    assert loss_of("rrd", above, target, mask) > good
    torch.testing.assert_close(loss_of("rrd", torch.tensor([[3.0, 2.0, 1.0, -1.0, 0.0]]), target, mask), good)


def test_dllm2rec_by_hand() -> None:
    position = [math.exp(-rank) for rank in (1, 2, 3)]
    confidence = [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95]
    consistent = [1, 1, 0]  # the student's first three are 1, 2, 0
    raw = [
        0.3 * p / sum(position) + 0.5 * c + 0.1 * o for p, c, o in zip(position, confidence, consistent, strict=True)
    ]
    weights = importance(SCORES, TARGET, *teacher_ranking(TARGET, ALL, 3), PLAIN)
    assert weights[0].tolist() == pytest.approx([weight / sum(raw) for weight in raw], rel=1e-6)
    logs = SCORES.log_softmax(-1)[0, [2, 0, 3]]
    expected = -sum(weight / sum(raw) * log for weight, log in zip(raw, logs.tolist(), strict=True))
    assert loss_of("dllm2rec", SCORES, TARGET, ALL).item() == pytest.approx(expected, rel=1e-6)


@given(cosines(1, 4), st.sampled_from([0.07, 0.2, 1.0]))
def test_dllm2recs_confidence_is_exp_of_minus_the_distance(given_cosines: Tensor, temperature: float) -> None:
    distance = (1 - given_cosines.double()) / temperature
    target = (given_cosines.double() / temperature).softmax(-1)
    settings = {**PLAIN, "kd_rank_by_position": 0.0, "kd_rank_by_consistency": 0.0}
    columns, listed = teacher_ranking(target, ALL, 3)
    expected = torch.exp(-distance).gather(1, columns)
    torch.testing.assert_close(importance(SCORES, target, columns, listed, settings), expected / expected.sum())


@given(batches(empty=True), st.sampled_from([PLAIN, EQUAL, {**PLAIN, "kd_rank_position": 0.01}]), st.integers(1, 7))
def test_weights_are_never_negative_and_sum_to_one(batch: Batch, settings: Settings, number: int) -> None:
    scores, target, mask = batch
    hidden = scores.masked_fill(~mask, -1e38)
    columns, listed = teacher_ranking(target, mask, number)
    discrepancy = rd_weights(hidden, columns, listed, settings["kd_rank_position"], settings["kd_rank_discrepancy"])
    for weights in (discrepancy, importance(hidden, target, columns, listed, settings)):
        assert bool((weights >= 0).all()) and bool((weights[~listed] == 0).all())
        sums = weights.sum(-1)
        assert bool(((sums - 1).abs() < 1e-12).logical_or(sums == 0).all())
        assert weights is discrepancy or torch.equal(sums > 0, listed.any(-1))  # rd's may be 0 throughout
