"""Soft targets, confidence, consistency and fusion: the figure's nine marks, identities, extremes, gaps."""

import pytest
import torch
from torch import Tensor

from recbole_prmkd.distil.weighting import CONFIDENCE, CONSISTENCY, agreement, fuse, soft_targets

T, B, C = 3, 5, 8
TRUE = torch.arange(B)  # the column of each row's true item
TEMPERATURE = torch.tensor([0.07, 0.5, 1.0, 2.0])
VALIDATION = torch.tensor([0.06, 0.03, 0.01, 0.05])
RULES = [(confidence, consistency) for confidence in sorted(CONFIDENCE) for consistency in sorted(CONSISTENCY)]


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def raw(seed: int, teachers: int = T) -> tuple[Tensor, Tensor]:
    """Cosine-like scores and a mask that hides some candidates, never the true item."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(teachers, B, C, generator=generator)
    mask = torch.rand(B, C, generator=generator) > 0.25
    mask[torch.arange(B), TRUE] = True
    return scores, mask


def integrate(
    scores: Tensor,
    mask: Tensor,
    confidence: str,
    consistency: str,
    damping: float = 0.5,
    order: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The whole way from scores (NaN: not known) to the fused target and the weights."""
    teachers = order or list(range(len(scores)))
    soft = soft_targets(scores, TEMPERATURE[teachers], mask)
    known = ~scores.isnan()
    weights = CONFIDENCE[confidence](soft, TRUE, known.any(-1), VALIDATION[teachers])
    return fuse(soft, weights, CONSISTENCY[consistency](soft, known, mask), damping, known, mask)


# --- soft targets


def test_soft_targets_are_torchs_softmax_at_each_own_temperature() -> None:
    scores, mask = raw(0)
    soft = soft_targets(scores, TEMPERATURE[:T], mask)
    for k in range(T):
        close(soft[k], (scores[k] / TEMPERATURE[k]).masked_fill(~mask, -torch.inf).softmax(-1))
    assert bool((soft[:, ~mask] == 0).all())


def test_an_unknown_candidate_counts_as_masked_for_its_teacher_alone() -> None:
    scores, mask = raw(1)
    gappy, narrow = scores.clone(), mask.clone()
    gappy[1, :, 6] = torch.nan
    narrow[:, 6] = False
    soft = soft_targets(gappy, TEMPERATURE[:T], mask)
    close(soft[1], soft_targets(scores, TEMPERATURE[:T], narrow)[1])
    close(soft[0], soft_targets(scores, TEMPERATURE[:T], mask)[0])


NEG, POS = -torch.inf, torch.inf


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
        ([torch.nan] * 4, [0.0] * 4),
    ],
)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_extreme_scores(scores: list[float], expected: list[float], temperature: float) -> None:
    mask = torch.ones(1, 4, dtype=torch.bool)
    soft = soft_targets(torch.tensor([[scores]]), torch.tensor([temperature]), mask)
    close(soft[0, 0], torch.tensor(expected))


def test_one_candidate_and_none() -> None:
    mask = torch.tensor([[True, False], [False, False]])
    soft = soft_targets(torch.tensor([[[1e4, 2e4], [1.0, 2.0]]]), torch.tensor([0.07]), mask)
    assert soft.tolist() == [[[1.0, 0.0], [0.0, 0.0]]]


# --- the figure's worked example: rows are the positive and two negatives, columns the three teachers

FIGURE = torch.tensor([[0.21, 0.22, 0.09], [0.23, 0.04, 0.05], [0.15, 0.08, 0.17]])
TICKS = [[True, True, False], [False, True, True], [True, False, True]]


@pytest.mark.parametrize("rule", ["std", "outlier", "vote", "vote_uniform"])
@pytest.mark.parametrize("candidates", [7, 8, 11])  # 1 / candidates between 0.09 and 0.15, which the figure allows
def test_nine_marks_of_the_figure(rule: str, candidates: int) -> None:
    soft = torch.zeros(3, 1, candidates)
    soft[:, 0, :3] = FIGURE.T  # [T, B, C]
    mask = torch.ones(1, candidates, dtype=torch.bool)
    marks = CONSISTENCY[rule](soft, torch.ones_like(soft, dtype=torch.bool), mask)
    assert marks[:, 0, :3].T.tolist() == TICKS


def test_uniform_vote_depends_on_the_number_of_the_rows_own_candidates() -> None:
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
    soft = torch.zeros(len(values), 1, 8)
    soft[:, 0, 0] = torch.tensor(values) * scale
    knows = torch.ones_like(soft, dtype=torch.bool)
    knows[:, 0, 0] = torch.tensor(known or [True] * len(values))
    marks: list[bool] = CONSISTENCY[rule](soft, knows, torch.ones(1, 8, dtype=torch.bool))[:, 0, 0].tolist()
    return marks


@pytest.mark.parametrize("rule", sorted(CONSISTENCY))
@pytest.mark.parametrize("values", [[0.3], [0.3, 0.01], [0.1, 0.1 + 1e-8], [0.1] * 3, [0.3] * 7, [0.0] * 4])
def test_one_two_or_equal_teachers_are_always_consistent(rule: str, values: list[float]) -> None:
    assert marks_of(rule, values) == [True] * len(values)


@pytest.mark.parametrize("rule", ["std", "outlier", "vote"])
@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1.0])
def test_marks_do_not_depend_on_the_size_of_the_scores(rule: str, scale: float) -> None:
    assert marks_of(rule, [0.21, 0.22, 0.09], scale=scale) == [True, True, False]
    assert marks_of(rule, [0.21, 0.22], scale=scale) == [True, True]


@pytest.mark.parametrize("rule", ["std", "outlier", "vote", "vote_uniform"])
def test_unknown_teachers_neither_vote_nor_agree(rule: str) -> None:
    known = [True, True, False, True, False]
    assert marks_of(rule, [0.21, 0.22, 0.9, 0.09, 0.0], known) == [True, True, False, False, False]
    assert marks_of(rule, [0.21, 0.9, 0.9], [True, False, False]) == [True, False, False]


def test_ties() -> None:
    assert marks_of("outlier", [0.1, 0.2, 0.3]) == [True, True, True]  # first and last are equally far
    assert marks_of("vote", [0.1, 0.12, 0.3, 0.32]) == [True] * 4  # two against two
    assert marks_of("vote_uniform", [0.1, 0.12, 0.3, 0.32]) == [True] * 4
    assert marks_of("std", [0.1, 0.2, 0.3]) == [False, True, False]
    assert marks_of("vote", [0.1, 0.3, 0.31, 0.32]) == [False, True, True, True]


@pytest.mark.parametrize("rule", sorted(CONSISTENCY))
def test_masked_candidates_have_no_marks(rule: str) -> None:
    scores, mask = raw(2)
    marks = CONSISTENCY[rule](soft_targets(scores, TEMPERATURE[:T], mask), ~scores.isnan(), mask)
    assert not bool(marks[:, ~mask].any()) and bool(marks[:, mask].any(0).all())


# --- confidence


@pytest.mark.parametrize("name", sorted(CONFIDENCE))
def test_confidence_sums_to_one_over_the_known_teachers(name: str) -> None:
    scores, mask = raw(3, teachers=4)
    soft = soft_targets(scores, TEMPERATURE, mask)
    known = torch.ones(4, B, dtype=torch.bool)
    known[1, 0] = known[:3, 1] = known[:, 2] = False
    weights = CONFIDENCE[name](soft, TRUE, known, VALIDATION)
    assert bool((weights >= 0).all()) and bool((weights[~known] == 0).all())
    close(weights.sum(0), torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]))
    assert weights[3, 1] == 1  # the only one


@pytest.mark.parametrize("name", sorted(CONFIDENCE))
def test_confidence_ignores_what_a_teacher_says_where_it_is_unknown(name: str) -> None:
    scores, mask = raw(14)
    soft, known = soft_targets(scores, TEMPERATURE[:T], mask), torch.ones(T, B, dtype=torch.bool)
    known[1] = False
    weights = CONFIDENCE[name](soft, TRUE, known, VALIDATION[:T])
    rest = [0, 2]
    close(weights[rest], CONFIDENCE[name](soft[rest], TRUE, known[rest], VALIDATION[rest]))


def test_confidence_formulas() -> None:
    scores, mask = raw(4)
    soft, known = soft_targets(scores, TEMPERATURE[:T], mask), torch.ones(T, B, dtype=torch.bool)
    true = soft[:, torch.arange(B), TRUE]
    of = {name: rule(soft, TRUE, known, VALIDATION[:T]) for name, rule in CONFIDENCE.items()}
    close(of["probability"], true / true.sum(0))
    close(of["label_ce"], (1 - (1 / true) / (1 / true).sum(0)) / (T - 1))
    entropy = torch.distributions.Categorical(probs=soft).entropy()
    close(of["entropy"], (1 - entropy / entropy.sum(0)) / (T - 1))
    close(of["validation"], torch.tensor([0.6, 0.3, 0.1]).unsqueeze(1).expand(T, B))
    close(of["uniform"], torch.full((T, B), 1 / 3))


@pytest.mark.parametrize("name", ["probability", "label_ce", "entropy"])
def test_the_sure_and_right_teacher_leads_an_unsure_one(name: str) -> None:
    soft = torch.tensor([[[0.97, 0.01, 0.01, 0.01]], [[0.25, 0.25, 0.25, 0.25]]])
    weights = CONFIDENCE[name](soft, torch.tensor([0]), torch.ones(2, 1, dtype=torch.bool), None)
    assert weights[0, 0] > 0.75


@pytest.mark.parametrize("name", ["probability", "label_ce"])
def test_the_sure_and_wrong_teacher_has_no_say(name: str) -> None:
    soft = torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]])
    weights = CONFIDENCE[name](soft, torch.tensor([0]), torch.ones(2, 1, dtype=torch.bool), None)
    close(weights[:, 0], torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("name", sorted(CONFIDENCE))
def test_confidence_is_equal_where_all_fail_alike(name: str) -> None:
    """Every teacher is sure, and wrong: the probability of the true item underflows to 0 in all of them."""
    soft = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])
    weights = CONFIDENCE[name](soft, torch.tensor([0]), torch.ones(2, 1, dtype=torch.bool), torch.zeros(2))
    close(weights[:, 0], torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("name", sorted(CONFIDENCE))
def test_a_teacher_with_empty_soft_targets_has_no_confidence(name: str) -> None:
    soft = torch.tensor([[[0.0, 0.0]], [[0.5, 0.5]]])
    weights = CONFIDENCE[name](soft, torch.tensor([0]), torch.ones(2, 1, dtype=torch.bool), VALIDATION[:2])
    close(weights[:, 0], torch.tensor([0.0, 1.0]))


# --- fusion: identities for every pair of rules


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_one_teacher_gives_its_own_soft_targets(confidence: str, consistency: str, damping: float) -> None:
    scores, mask = raw(5, teachers=1)
    target, weights = integrate(scores, mask, confidence, consistency, damping)
    close(target, soft_targets(scores, TEMPERATURE[:1], mask)[0])
    close(weights[0], mask.float())


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_equal_teachers_give_what_one_gives(confidence: str, consistency: str, damping: float) -> None:
    scores, mask = raw(6, teachers=1)
    target, _ = integrate(scores.expand(3, -1, -1), mask, confidence, consistency, damping, order=[1, 1, 1])
    close(target, soft_targets(scores, TEMPERATURE[1:2], mask)[0])


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
def test_the_order_of_the_teachers_is_irrelevant(confidence: str, consistency: str) -> None:
    scores, mask = raw(7, teachers=4)
    scores[2, 1] = torch.nan
    order = [2, 0, 3, 1]
    target, weights = integrate(scores, mask, confidence, consistency, damping=0.3)
    shuffled, shuffled_weights = integrate(scores[order], mask, confidence, consistency, 0.3, order)
    close(shuffled, target)
    close(shuffled_weights, weights[order])


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
@pytest.mark.parametrize("damping", [0.0, 0.5, 1.0])
def test_weights_sum_to_one_with_gaps_in_rows_and_items(confidence: str, consistency: str, damping: float) -> None:
    scores, mask = raw(8, teachers=4)
    scores[1, 0] = scores[:3, 1] = scores[:, 2] = torch.nan  # rows unknown to one, to all but one, to all
    scores[0, :, 5] = scores[:2, :, 6] = scores[:, :, 7] = torch.nan  # items alike
    known = ~scores.isnan()
    target, weights = integrate(scores, mask, confidence, consistency, damping)
    assert bool((weights >= 0).all()) and bool((weights[~known] == 0).all())
    close(weights.sum(0), (known.any(0) & mask).float())
    close(target.sum(-1), known.any(0).any(-1).float())
    assert bool((target[~mask] == 0).all()) and bool((target[2] == 0).all())


@pytest.mark.parametrize("confidence", sorted(CONFIDENCE))
def test_an_unknown_teacher_could_as_well_be_absent(confidence: str) -> None:
    scores, mask = raw(9)
    scores[1] = torch.nan
    for consistency in CONSISTENCY:
        target, _ = integrate(scores, mask, confidence, consistency, damping=0.2)
        close(target, integrate(scores[[0, 2]], mask, confidence, consistency, 0.2, order=[0, 2])[0])


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
def test_damping_one_is_no_consistency_and_less_is_some(confidence: str, consistency: str) -> None:
    scores, mask = raw(10)
    plain, _ = integrate(scores, mask, confidence, "none", damping=0.0)
    close(integrate(scores, mask, confidence, consistency, damping=1.0)[0], plain)
    damped, _ = integrate(scores, mask, confidence, consistency, damping=0.5)
    assert ((damped - plain).abs().max() > 1e-4) == (consistency != "none")


def test_fusion_ignores_what_a_teacher_says_where_it_is_unknown() -> None:
    scores, mask = raw(15)
    soft, known = soft_targets(scores, TEMPERATURE[:T], mask), torch.ones(T, B, C, dtype=torch.bool)
    known[1, 2:, 3] = False
    results = [
        fuse(soft.masked_fill(~known, said), torch.ones(T, B) / T, known, 0.5, known, mask)[0]
        for said in (0.0, 0.9, torch.nan)
    ]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_uniform_and_none_is_the_mean_of_the_teachers() -> None:
    scores, mask = raw(11)
    close(integrate(scores, mask, "uniform", "none")[0], soft_targets(scores, TEMPERATURE[:T], mask).mean(0))


def test_where_no_weight_is_left_confidence_and_then_equal_weights_decide() -> None:
    soft = torch.tensor([[[0.6, 0.4]], [[0.2, 0.8]]])
    confidence = torch.tensor([[0.9], [0.1]])
    known, mask = torch.ones_like(soft, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool)
    marks = torch.tensor([[[False, True]], [[False, False]]])
    close(fuse(soft, confidence, marks, 0.0, known, mask)[1][:, 0], torch.tensor([[0.9, 1.0], [0.1, 0.0]]))
    known[0] = False
    nothing = torch.tensor([[1.0], [0.0]])  # all confidence is in the teacher that does not know
    close(fuse(soft, nothing, marks, 0.5, known, mask)[0], torch.tensor([[0.2, 0.8]]))


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
@pytest.mark.parametrize("scores", [[1e4, -1e4, 0.0], [3.0, 3.0, 3.0], [NEG, 1.0, NEG], [NEG] * 3, [torch.nan] * 3])
def test_extremes_stay_finite(confidence: str, consistency: str, scores: list[float]) -> None:
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    teachers = torch.tensor([scores, [0.1, 0.2, 0.3]]).unsqueeze(1).expand(2, 3, 3)
    soft, known = soft_targets(teachers, TEMPERATURE[:2], mask), ~teachers.isnan()
    columns = torch.tensor([0, 0, -1])  # the last row is padding
    weights = CONFIDENCE[confidence](soft, columns, known.any(-1), VALIDATION[:2])
    target, weights = fuse(soft, weights, CONSISTENCY[consistency](soft, known, mask), 0.0, known, mask)
    assert bool(target.isfinite().all()) and bool(weights.isfinite().all())
    close(target.sum(-1), torch.tensor([1.0, 1.0, 0.0]))


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
def test_half_precision_and_autocast_are_computed_in_float32(confidence: str, consistency: str) -> None:
    scores, mask = raw(12)
    half = scores.bfloat16()
    expected = integrate(half.float(), mask, confidence, consistency)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        target, weights = integrate(half, mask, confidence, consistency)
    assert target.dtype == weights.dtype == torch.float32
    assert torch.equal(target, expected[0]) and torch.equal(weights, expected[1])


@pytest.mark.parametrize(("confidence", "consistency"), RULES)
@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("gaps", [False, True])
def test_numbers_give_what_bools_give_and_change_nothing(
    confidence: str, consistency: str, damping: float, gaps: bool
) -> None:
    scores, mask = raw(16, teachers=4)
    scores[0] *= 1e4  # sure of one candidate: nothing is left of the others where damping is 0
    if gaps:
        scores[1, 0] = scores[:3, 1] = scores[:, 2] = scores[0, :, 5] = torch.nan
    known = ~scores.isnan()
    some, say = mask.float(), (known & mask).float()
    soft = soft_targets(scores, TEMPERATURE, mask)
    weights = CONFIDENCE[confidence](soft, TRUE, known.any(-1), VALIDATION)
    marks = CONSISTENCY[consistency](soft, known, mask)
    given = scores, some, say, soft, weights, known, mask
    before = [tensor.clone() for tensor in given]
    assert torch.equal(soft_targets(scores, TEMPERATURE, some), soft)
    numbers = CONSISTENCY[consistency](soft, say, some)
    assert marks.dtype == torch.bool and torch.equal(numbers, marks.float())
    target, fused = fuse(soft, weights, marks, damping, known, mask)
    for got, expected in zip(fuse(soft, weights, numbers, damping, say, some), (target, fused), strict=True):
        assert torch.equal(got, expected)
    for tensor, old in zip(given, before, strict=True):
        torch.testing.assert_close(tensor, old, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("damping", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("gaps", [False, True])
def test_fusion_equals_its_definition(damping: float, gaps: bool) -> None:
    """Entry by entry in plain Python, with teachers without any confidence in some rows."""
    scores, mask = raw(17)
    marks = torch.rand(T, B, C, generator=torch.Generator().manual_seed(18)) > 0.5
    known = torch.ones_like(marks)
    if gaps:
        known[1, 0] = known[:2, 1] = known[:, 2] = known[0, :, 5] = False
    soft = soft_targets(scores, TEMPERATURE[:T], mask)
    confidence = torch.tensor([[0.0], [0.4], [0.6]]).repeat(1, B)
    confidence[:, 3] = torch.tensor([1.0, 0.0, 0.0])
    target, weights = fuse(soft, confidence, marks, damping, known, mask)
    expected = torch.zeros(T, B, C)
    for row in range(B):
        for candidate in torch.nonzero(mask[row]).flatten().tolist():
            say = known[:, row, candidate].float()
            agrees = torch.where(marks[:, row, candidate], 1.0, damping)
            options = (confidence[:, row] * agrees * say, confidence[:, row] * say, say)
            expected[:, row, candidate] = next((w / w.sum() for w in options if w.sum() > 0), say)
    close(weights, expected)
    total = (expected * soft).sum(0)
    close(target, total / total.sum(-1, keepdim=True).clamp(min=1e-30))


def test_agreement_is_what_all_knowing_teachers_have_in_common() -> None:
    soft = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0, 0]], [[0.2, 0.5, 0.3], [0, 0.5, 0.5]]])  # [2, 2, 3]
    everyone = torch.ones(2, 2, dtype=torch.bool)
    close(agreement(soft, everyone), torch.tensor([0.7, 0.0]))
    close(agreement(soft[[0, 0]], everyone), torch.ones(2))
    close(agreement(soft, torch.tensor([[True, False], [False, False]])), torch.tensor([1.0, 0.0]))


def test_what_cannot_be_is_refused() -> None:
    scores, mask = raw(13)
    soft = soft_targets(scores, TEMPERATURE[:T], mask)
    known, confidence = torch.ones_like(soft, dtype=torch.bool), torch.ones(T, B)
    with pytest.raises(ValueError, match=r"scores \[T, B, C\]"):
        soft_targets(scores, TEMPERATURE[:2], mask)
    with pytest.raises(ValueError, match=r"confidence \[T, B\]"):
        fuse(soft, confidence[:, :2], known, 0.5, known, mask)
    for damping in (-0.1, 1.1, torch.nan):
        with pytest.raises(ValueError, match="damping"):
            fuse(soft, confidence, known, damping, known, mask)
    for validation in (
        None,
        VALIDATION[:2],
        torch.tensor([0.1, -0.1, 0.2]),
        torch.tensor([0.1, torch.nan, 0.2]),
    ):
        with pytest.raises(ValueError, match="3 numbers >= 0"):
            CONFIDENCE["validation"](soft, TRUE, known.any(-1), validation)
