"""Soft targets, confidence, consistency and fusion: what holds for any scores, and hand-made numbers."""

from itertools import product

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from strategies import EXTREME, NAN, NEG, POS, Problem, bools, problems, remark
from torch import Tensor

from recbole_prmkd.distil.weighting import CONFIDENCE, CONSISTENCY, agreement, fuse, soft_targets

RULES = list(product(sorted(CONFIDENCE), sorted(CONSISTENCY)))
MARKING = ["std", "outlier", "vote", "vote_uniform"]
DAMPING = st.sampled_from([0.0, 0.3, 1.0])


def close(got: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def soft_of(problem: Problem) -> Tensor:
    return soft_targets(problem.scores, problem.temperature, problem.mask)


def confidence_of(name: str, problem: Problem, known: Tensor | None = None) -> Tensor:
    """[T, B]"""
    known = problem.known.any(-1) if known is None else known
    return CONFIDENCE[name](soft_of(problem), problem.columns, known, problem.validation)


def integrate(problem: Problem, confidence: str, consistency: str, damping: float) -> tuple[Tensor, Tensor]:
    """From scores to the fused target [B, C] and the weights [T, B, C]."""
    remark(f"{confidence} x {consistency}")
    soft, known = soft_of(problem), problem.known
    marks = CONSISTENCY[consistency](soft, known, problem.mask)
    return fuse(soft, confidence_of(confidence, problem), marks, damping, known, problem.mask)


def shared_mask(values: list[list[float]]) -> Problem:
    """One example with these scores of each teacher, all of them candidates, the first the true item."""
    scores = torch.tensor(values).unsqueeze(1)  # [T, 1, C]
    mask = torch.ones(scores.shape[1:], dtype=torch.bool)
    return Problem(scores, torch.ones(len(values)), mask, torch.tensor([0]), torch.ones(len(values)))


# --- soft targets


@given(problems(gaps=True))
def test_soft_targets_are_torchs_softmax_over_what_a_teacher_covers(problem: Problem) -> None:
    counts = problem.mask & problem.known  # [T, B, C]
    temperature = problem.temperature.view(-1, 1, 1)
    expected = (problem.scores / temperature).masked_fill(~counts, NEG).softmax(-1)  # NaN where a teacher covers none
    soft = soft_of(problem)
    close(soft, expected.nan_to_num(0))
    assert bool((soft[~counts] == 0).all())


@given(problems(gaps=True), st.sampled_from([-3.0, 0.5, 100.0]))
def test_a_constant_added_to_the_scores_changes_nothing(problem: Problem, constant: float) -> None:
    close(soft_of(problem._replace(scores=problem.scores + constant)), soft_of(problem), atol=1e-4)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1e4, -1e4, 0.0, 9e3], [1.0, 0.0, 0.0, 0.0]),
        ([2.0, 2.0, 2.0, 2.0], [0.25] * 4),
        ([-1e4] * 4, [0.25] * 4),
        ([NEG, 1.0, 1.0, NEG], [0.0, 0.5, 0.5, 0.0]),
        ([NEG] * 4, [0.0] * 4),
        ([POS, 1.0, POS, NEG], [0.5, 0.0, 0.5, 0.0]),
        ([3e38, -3e38, 3e38, 0.0], [0.5, 0.0, 0.5, 0.0]),
        ([NAN] * 4, [0.0] * 4),
    ],
)
def test_soft_targets_of_extreme_scores(scores: list[float], expected: list[float]) -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    for temperature in (0.01, 1.0):
        close(soft_targets(torch.tensor([[scores]]), torch.tensor([temperature]), mask)[0, 0], torch.tensor(expected))


def test_one_candidate_and_none() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    soft = soft_targets(torch.tensor([[[1e4, 2e4], [1.0, 2.0]]]), torch.tensor([0.07]), mask)
    assert soft.tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


# --- the figure's worked example: rows are the positive and two negatives, columns the three teachers

FIGURE = torch.tensor([[0.21, 0.22, 0.09], [0.23, 0.04, 0.05], [0.15, 0.08, 0.17]])
TICKS = [[True, True, False], [False, True, True], [True, False, True]]


@pytest.mark.parametrize("rule", MARKING)
def test_nine_marks_of_the_figure(rule: str) -> None:
    for candidates in (7, 8, 11):  # 1 / candidates between 0.09 and 0.15, which the figure allows
        soft = torch.zeros(3, 1, candidates)
        soft[:, 0, :3] = FIGURE.T  # [T, B, C]
        mask = torch.ones(1, candidates, dtype=torch.bool)
        marks = CONSISTENCY[rule](soft, torch.ones_like(soft, dtype=torch.bool), mask)
        assert marks[:, 0, :3].T.tolist() == TICKS


def test_uniform_vote_depends_on_the_number_of_the_examples_own_candidates() -> None:
    soft = torch.zeros(3, 2, 8)
    soft[:, :, :3] = FIGURE.T.unsqueeze(1)
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[1, 5:] = False  # threshold 1/5: now all but one vote no
    marks = CONSISTENCY["vote_uniform"](soft, torch.ones_like(soft, dtype=torch.bool), mask)
    assert marks[:, 0, :3].T.tolist() == TICKS
    assert marks[:, 1, :3].T.tolist() == [[True, True, False], [False, True, True], [True, True, True]]


def test_fused_value_of_the_figure() -> None:
    """0.21 w1 + 0.22 w2 + 0.09 w3, the last one damped."""
    soft, mask = FIGURE.T.unsqueeze(1), torch.ones(1, 3, dtype=torch.bool)
    marks = torch.tensor(TICKS).T.unsqueeze(1)
    everything = torch.ones_like(soft, dtype=torch.bool)
    confidence = torch.tensor([[0.5], [0.3], [0.2]])
    target, weights = fuse(soft, confidence, marks, 0.5, everything, mask)
    close(weights[:, 0, 0], torch.tensor([0.5, 0.3, 0.1]) / 0.9)
    positive = (0.21 * 0.5 + 0.22 * 0.3 + 0.09 * 0.1) / 0.9
    negatives = (0.23 * 0.25 + 0.04 * 0.3 + 0.05 * 0.2) / 0.75, (0.15 * 0.5 + 0.08 * 0.15 + 0.17 * 0.2) / 0.85
    close(target[0, 0], torch.tensor(positive / (positive + sum(negatives))))


# --- consistency


def marks_of(rule: str, values: list[float], known: list[bool] | None = None, scale: float = 1.0) -> list[bool]:
    """The marks of one candidate among 8, one value per teacher."""
    remark(rule)
    soft = torch.zeros(len(values), 1, 8)
    soft[:, 0, 0] = torch.tensor(values) * scale
    covers = torch.ones_like(soft, dtype=torch.bool)
    covers[:, 0, 0] = torch.tensor(known or [True] * len(values))
    marks: list[bool] = CONSISTENCY[rule](soft, covers, torch.ones(1, 8, dtype=torch.bool))[:, 0, 0].tolist()
    return marks


PROBABILITY = st.integers(0, 100).map(lambda percent: percent / 100)
VALUES = st.lists(PROBABILITY, min_size=1, max_size=6)


@given(PROBABILITY, PROBABILITY, st.lists(st.sampled_from([0.0, 1e-7, -1e-7]), min_size=1, max_size=7))
@example(0.125, 0.1, [0.0, 0.0, -1e-7])  # 0.125: where the uniform vote of 8 candidates turns
@example(0.1, 0.1, [0.0, 0.0, 1e-7])
def test_one_two_or_equal_teachers_are_always_consistent(value: float, other: float, rounding: list[float]) -> None:
    for rule in sorted(CONSISTENCY):
        assert marks_of(rule, [value * (1 + error) for error in rounding]) == [True] * len(rounding)
        assert marks_of(rule, [value, other]) == [True, True]


@given(VALUES, st.integers(1, 119))
@example([0.21, 0.22, 0.09], 119)
def test_marks_do_not_depend_on_the_size_of_the_scores(values: list[float], power: int) -> None:
    for rule in ("std", "outlier", "vote"):
        assert marks_of(rule, values, scale=2.0**-power) == marks_of(rule, values)  # down to 1.5e-36


@given(st.lists(st.tuples(PROBABILITY, st.booleans()), min_size=1, max_size=6))
@example([(0.21, True), (0.22, True), (0.9, False), (0.09, True), (0.0, False)])
@example([(0.21, True), (0.9, False), (0.9, False)])
def test_teachers_that_do_not_cover_a_candidate_neither_vote_nor_agree(teachers: list[tuple[float, bool]]) -> None:
    values, known = map(list, zip(*teachers, strict=True))
    assume(any(known))
    for rule in sorted(CONSISTENCY):
        alone = iter(marks_of(rule, [value for value, covers in teachers if covers]))
        assert marks_of(rule, values, known) == [covers and next(alone) for covers in known]


def test_ties() -> None:
    assert marks_of("outlier", [0.1, 0.2, 0.3]) == [True, True, True]  # first and last are equally far
    assert marks_of("vote", [0.1, 0.12, 0.3, 0.32]) == [True] * 4  # two against two
    assert marks_of("vote_uniform", [0.1, 0.12, 0.3, 0.32]) == [True] * 4
    assert marks_of("std", [0.1, 0.2, 0.3]) == [False, True, False]
    assert marks_of("vote", [0.1, 0.3, 0.31, 0.32]) == [False, True, True, True]


@given(problems(gaps=True))
def test_every_covered_candidate_has_a_mark_and_no_other(problem: Problem) -> None:
    counts = problem.mask & problem.known  # [T, B, C]
    for rule in sorted(CONSISTENCY):
        remark(rule)
        marks = CONSISTENCY[rule](soft_of(problem), problem.known, problem.mask)
        assert not bool(marks[~counts].any()) and torch.equal(marks.any(0), counts.any(0))


# --- confidence


@given(problems(gaps=True), st.data())
def test_confidence_sums_to_one_over_the_teachers_that_have_a_say(problem: Problem, data: st.DataObject) -> None:
    """A teacher has one if it covers the example, here at random, and its soft targets are not 0 throughout."""
    known = data.draw(bools(*problem.scores.shape[:2]))
    say = known & (soft_of(problem) > 0).any(-1)  # [T, B]
    for name in sorted(CONFIDENCE):
        remark(name)
        weights = confidence_of(name, problem, known)
        assert bool((weights >= 0).all()) and bool((weights[~say] == 0).all())
        close(weights.sum(0), say.any(0).float())


@given(problems(gaps=True), st.data())
def test_confidence_ignores_what_a_teacher_says_where_it_does_not_cover(problem: Problem, data: st.DataObject) -> None:
    known = data.draw(bools(*problem.scores.shape[:2]))
    soft = soft_of(problem)
    for name, row in product(sorted(CONFIDENCE), range(len(problem.mask))):
        remark(name)
        covering = known[:, row].nonzero().flatten().tolist()
        every = CONFIDENCE[name](soft, problem.columns, known, problem.validation)[covering, row]
        only = slice(row, row + 1)
        part = soft[covering, only], problem.columns[only], known[covering, only], problem.validation[covering]
        if covering:
            close(every, CONFIDENCE[name](*part)[:, 0])


@given(problems(least=2))
def test_confidence_formulas(problem: Problem) -> None:
    assume(problem.scores.shape[-1] > 1)
    problem = problem._replace(scores=problem.scores.double(), mask=torch.ones_like(problem.mask))
    teachers, size = problem.scores.shape[:2]
    of = {name: confidence_of(name, problem) for name in CONFIDENCE}
    soft = soft_of(problem)
    true = soft[:, torch.arange(size), problem.columns]  # [T, B]
    entropy = torch.distributions.Categorical(probs=soft).entropy()
    close(of["probability"], true / true.sum(0))
    close(of["label_ce"], (1 - (1 / true) / (1 / true).sum(0)) / (teachers - 1))
    close(of["entropy"], (1 - entropy / entropy.sum(0)) / (teachers - 1))
    close(of["uniform"], torch.full_like(true, 1 / teachers))
    if bool(problem.validation.any()):
        share = problem.validation.double() / problem.validation.double().sum()
        close(of["validation"], share.unsqueeze(1).expand(-1, size))


@given(problems(least=2), st.lists(st.sampled_from([1.0, 0.5, 0.01]), min_size=4, max_size=4))
def test_entropy_of_soft_targets_that_sum_to_a_share(problem: Problem, shares: list[float]) -> None:
    assume(problem.scores.shape[-1] > 1)
    problem = problem._replace(scores=problem.scores.double(), mask=torch.ones_like(problem.mask))
    share = torch.tensor(shares[: len(problem.scores)]).double().view(-1, 1, 1)
    soft, known = soft_of(problem), problem.known.any(-1)
    entropy = torch.distributions.Categorical(probs=soft).entropy() - share[..., 0].log()
    got = CONFIDENCE["entropy"](soft * share, problem.columns, known, None)
    close(got, (1 - entropy / entropy.sum(0)) / (len(soft) - 1))


def test_the_sure_teacher_leads_where_it_is_right_and_has_no_say_where_it_is_wrong() -> None:
    right = torch.tensor([[[0.97, 0.01, 0.01, 0.01]], [[0.25, 0.25, 0.25, 0.25]]])
    wrong = torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])
    known = torch.ones(2, 1, dtype=torch.bool)
    for name in ("probability", "label_ce", "entropy"):
        assert CONFIDENCE[name](right, torch.tensor([0]), known, None)[0, 0] > 0.75
    for name in ("probability", "label_ce"):
        close(CONFIDENCE[name](wrong, torch.tensor([0]), known, None)[:, 0], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("name", sorted(CONFIDENCE))
def test_confidence_where_all_fail_alike_and_of_empty_soft_targets(name: str) -> None:
    known, first = torch.ones(2, 1, dtype=torch.bool), torch.tensor([0])
    # Every teacher is sure, and wrong: the probability of the true item underflows to 0 in all of them.
    wrong = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])
    close(CONFIDENCE[name](wrong, first, known, torch.zeros(2))[:, 0], torch.tensor([0.5, 0.5]))
    empty = torch.tensor([[[0.0, 0.0]], [[0.5, 0.5]]])
    close(CONFIDENCE[name](empty, first, known, torch.tensor([0.06, 0.03]))[:, 0], torch.tensor([0.0, 1.0]))


# --- fusion: identities for every pair of rules


@given(problems(most=1), DAMPING, st.integers(1, 4))
def test_one_teacher_or_equal_ones_give_their_own_soft_targets(problem: Problem, damping: float, number: int) -> None:
    for rules in RULES:
        target, weights = integrate(problem.of([0] * number), *rules, damping)
        close(target, soft_of(problem)[0])
        close(weights.sum(0), problem.mask.float())


@given(problems(gaps=True), DAMPING, st.data())
def test_the_order_of_teachers_candidates_and_examples_is_irrelevant(
    problem: Problem, damping: float, data: st.DataObject
) -> None:
    teachers, rows, columns = (data.draw(st.permutations(range(size))) for size in problem.scores.shape)
    moved = problem.of(teachers)
    moved = moved._replace(
        scores=moved.scores[:, rows][..., columns],
        mask=moved.mask[rows][:, columns],
        columns=torch.tensor(columns).argsort()[moved.columns[rows]],
    )
    for rules in RULES:
        target, weights = integrate(problem, *rules, damping)
        got, got_weights = integrate(moved, *rules, damping)
        close(got, target[rows][:, columns])
        close(got_weights, weights[teachers][:, rows][..., columns])


@given(problems(gaps=True), DAMPING)
def test_weights_and_targets_sum_to_one_and_are_zero_elsewhere(problem: Problem, damping: float) -> None:
    counts = problem.known & problem.mask  # [T, B, C]
    for rules in RULES:
        target, weights = integrate(problem, *rules, damping)
        assert bool((weights >= 0).all()) and bool((weights[~counts] == 0).all())
        close(weights.sum(0), counts.any(0).float())
        assert bool((target >= 0).all()) and bool((target[~counts.any(0)] == 0).all())
        close(target.sum(-1), counts.any(0).any(-1).float())


@given(problems(least=2), DAMPING)
def test_a_teacher_that_covers_nothing_could_as_well_be_absent(problem: Problem, damping: float) -> None:
    problem.scores[1] = NAN
    rest = [teacher for teacher in range(len(problem.scores)) if teacher != 1]
    for rules in RULES:
        target, weights = integrate(problem, *rules, damping)
        expected, expected_weights = integrate(problem.of(rest), *rules, damping)
        close(target, expected)
        close(weights[rest], expected_weights)


@given(problems(gaps=True), DAMPING)
def test_masked_candidates_could_as_well_be_absent(problem: Problem, damping: float) -> None:
    keep = problem.mask[0].index_fill(0, problem.columns, True)  # [C]
    mask = keep.expand_as(problem.mask)  # the same in every example, so that the others can be taken out
    whole = problem._replace(mask=mask)
    part = problem._replace(
        scores=problem.scores[..., keep], mask=mask[:, keep], columns=keep.cumsum(0)[problem.columns] - 1
    )
    for rules in RULES:
        close(integrate(whole, *rules, damping)[0][:, keep], integrate(part, *rules, damping)[0])


@given(problems(gaps=True), st.sampled_from([0.0, 0.5]))
def test_damping_one_is_no_consistency(problem: Problem, damping: float) -> None:
    for confidence in sorted(CONFIDENCE):
        plain, _ = integrate(problem, confidence, "none", damping)
        for consistency in sorted(CONSISTENCY):
            close(integrate(problem, confidence, consistency, damping=1.0)[0], plain)


def test_damping_below_one_takes_weight_from_a_teacher_that_does_not_agree() -> None:
    problem = shared_mask([[1.0, 0.2, 0.1, 0.3], [0.9, 0.3, 0.1, 0.2], [0.1, 0.5, 0.9, 0.3]])
    for confidence, consistency in RULES:
        damped, plain = (integrate(problem, confidence, rule, 0.5)[0] for rule in (consistency, "none"))
        assert ((damped - plain).abs().max() > 1e-3) == (consistency != "none"), (confidence, consistency)


@given(problems(gaps=True), DAMPING, st.data())
def test_fusion_ignores_what_a_teacher_says_where_it_does_not_cover(
    problem: Problem, damping: float, data: st.DataObject
) -> None:
    soft, known = soft_of(problem), data.draw(bools(*problem.scores.shape))
    confidence = torch.ones(soft.shape[:2]) / len(soft)
    results = [
        fuse(soft.masked_fill(~known, said), confidence, known, damping, known, problem.mask)[0]
        for said in (0.0, 0.9, NAN)
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@given(problems())
def test_uniform_and_none_is_the_mean_of_the_teachers(problem: Problem) -> None:
    close(integrate(problem, "uniform", "none", 0.5)[0], soft_of(problem).mean(0))


def test_where_no_weight_is_left_confidence_and_then_equal_weights_decide() -> None:
    soft = torch.tensor([[[0.6, 0.4]], [[0.2, 0.8]]])
    confidence = torch.tensor([[0.9], [0.1]])
    known, mask = torch.ones_like(soft, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    marks = torch.tensor([[[False, True]], [[False, False]]])
    close(fuse(soft, confidence, marks, 0.0, known, mask)[1][:, 0], torch.tensor([[0.9, 1.0], [0.1, 0.0]]))
    known[0] = False
    nothing = torch.tensor([[1.0], [0.0]])  # all confidence is in the teacher that covers neither
    close(fuse(soft, nothing, marks, 0.5, known, mask)[0], torch.tensor([[0.2, 0.8]]))


@given(problems(gaps=True), DAMPING, st.data())
def test_fusion_equals_its_definition(problem: Problem, damping: float, data: st.DataObject) -> None:
    """Entry by entry in plain Python, with any marks, and teachers without any confidence in some examples."""
    soft, known, mask = soft_of(problem), problem.known, problem.mask
    shape = soft.shape
    soft *= data.draw(st.sampled_from([1.0, torch.linspace(0.2, 1.0, len(soft)).view(-1, 1, 1)]))  # sums of less than 1
    marks = data.draw(bools(*shape))
    confidence = problem.validation.unsqueeze(1) * data.draw(bools(*shape[:2]))  # [T, B]
    target, weights = fuse(soft, confidence, marks, damping, known, mask)
    expected = torch.zeros(shape)
    for row, candidate in mask.nonzero().tolist():
        say = known[:, row, candidate].float()
        agrees = torch.where(marks[:, row, candidate], 1.0, damping)
        options = (confidence[:, row] * agrees * say, confidence[:, row] * say, say)
        expected[:, row, candidate] = next((w / w.sum() for w in options if w.sum() > 0), say)
    close(weights, expected)
    total = (expected * soft).sum(0)
    close(target, total / total.sum(-1, keepdim=True).clamp(min=1e-30))


# --- numbers: extremes, precision, bools as numbers


@given(st.lists(EXTREME | st.just(NAN), min_size=3, max_size=3), st.sampled_from([0.01, 0.07, 1.0]), DAMPING)
@example([1e4, -1e4, 0.0], 0.07, 0.0)
@example([NEG, 1.0, NEG], 0.07, 0.0)
@example([NEG] * 3, 0.07, 0.0)
@example([NAN] * 3, 0.07, 0.0)
def test_extremes_stay_finite(scores: list[float], temperature: float, damping: float) -> None:
    """Beside a teacher with plain scores; one example has one candidate, another one is padding without any."""
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    teachers = torch.tensor([scores, [0.1, 0.2, 0.3]]).unsqueeze(1).expand(2, 3, 3)
    problem = Problem(
        teachers, torch.tensor([temperature, 0.5]), mask, torch.tensor([0, 0, -1]), torch.tensor([0.06, 0.03])
    )
    for rules in RULES:
        target, weights = integrate(problem, *rules, damping)
        assert bool(target.isfinite().all()) and bool(weights.isfinite().all())
        close(target.sum(-1), torch.tensor([1.0, 1.0, 0.0]))


@given(problems(gaps=True), DAMPING)
def test_half_precision_and_autocast_are_computed_in_float32(problem: Problem, damping: float) -> None:
    half = problem._replace(scores=problem.scores.bfloat16())
    for rules in RULES:
        expected = integrate(half._replace(scores=half.scores.float()), *rules, damping)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            target, weights = integrate(half, *rules, damping)
        assert target.dtype == weights.dtype == torch.float32
        assert torch.equal(target, expected[0]) and torch.equal(weights, expected[1])


@given(problems(gaps=True), DAMPING)
def test_float32_gives_what_float64_gives(problem: Problem, damping: float) -> None:
    double = problem._replace(scores=problem.scores.double(), validation=problem.validation.double())
    for rules in RULES:
        (target, weights), expected = integrate(problem, *rules, damping), integrate(double, *rules, damping)
        assert expected[0].dtype == expected[1].dtype == torch.float64
        close(target.double(), expected[0], atol=1e-5)
        close(weights.double(), expected[1], atol=1e-4)


@given(problems(gaps=True), DAMPING, st.sampled_from([1.0, 1e4]))
def test_numbers_give_what_bools_give_and_input_stays_as_it_was(
    problem: Problem, damping: float, factor: float
) -> None:
    problem.scores[0] *= factor  # 1e4: sure of one candidate, nothing is left of the others where damping is 0
    scores, known, mask = problem.scores, problem.known, problem.mask
    some, say = mask.float(), (known & mask).float()
    soft = soft_of(problem)
    assert torch.equal(soft_targets(scores, problem.temperature, some), soft)
    for confidence, consistency in RULES:
        remark(f"{confidence} x {consistency}")
        weights = confidence_of(confidence, problem)
        given_ = scores, some, say, soft, weights, known, mask
        before = [tensor.clone() for tensor in given_]
        marks = CONSISTENCY[consistency](soft, known, mask)
        numbers = CONSISTENCY[consistency](soft, say, some)
        assert marks.dtype == torch.bool and torch.equal(numbers, marks.float())
        expected = fuse(soft, weights, marks, damping, known, mask)
        for got, wanted in zip(fuse(soft, weights, numbers, damping, say, some), expected, strict=True):
            assert torch.equal(got, wanted)
        for tensor, old in zip(given_, before, strict=True):
            torch.testing.assert_close(tensor, old, rtol=0, atol=0, equal_nan=True)


# --- agreement


def test_agreement_is_what_all_covering_teachers_have_in_common() -> None:
    soft = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0, 0]], [[0.2, 0.5, 0.3], [0, 0.5, 0.5]]])  # [2, 2, 3]
    everyone = torch.ones(2, 2, dtype=torch.bool)
    close(agreement(soft, everyone), torch.tensor([0.7, 0.0]))
    close(agreement(soft[[0, 0]], everyone), torch.ones(2))
    close(agreement(soft, torch.tensor([[True, False], [False, False]])), torch.tensor([1.0, 0.0]))


@given(problems(least=2), st.data())
def test_agreement_falls_with_each_teacher_and_one_alone_agrees(problem: Problem, data: st.DataObject) -> None:
    soft, known = soft_of(problem), data.draw(bools(*problem.scores.shape[:2]))
    every, fewer = agreement(soft, known), agreement(soft, known & (torch.arange(len(soft)) > 0)[:, None])
    number = known.sum(0)
    close(every[number == 1], torch.ones(int((number == 1).sum())))
    assert bool((every >= 0).all()) and bool((every <= 1 + 1e-6).all()) and bool((every[number == 0] == 0).all())
    assert bool((fewer >= every - 1e-6)[number > 1].all())


def test_wrong_shapes_and_ranges_raise() -> None:
    problem = shared_mask([[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]])
    soft, known, confidence = soft_of(problem), problem.known, torch.ones(3, 1)
    with pytest.raises(ValueError, match=r"scores \[T, B, C\]"):
        soft_targets(problem.scores, problem.temperature[:2], problem.mask)
    with pytest.raises(ValueError, match=r"confidence \[T, B\]"):
        fuse(soft, confidence[:2], known, 0.5, known, problem.mask)
    for damping in (-0.1, 1.1, NAN):
        with pytest.raises(ValueError, match="damping"):
            fuse(soft, confidence, known, damping, known, problem.mask)
    for validation in (None, torch.ones(2), torch.tensor([0.1, -0.1, 0.2]), torch.tensor([0.1, NAN, 0.2])):
        with pytest.raises(ValueError, match="3 numbers >= 0"):
            CONFIDENCE["validation"](soft, problem.columns, known.any(-1), validation)
