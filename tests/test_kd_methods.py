"""KD methods of other papers: numbers worked by hand, their limits, and what none of them may do.

`test_baselines` has rd, rrd and dllm2rec.
"""

import math
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXTREME, NEG, batches, bools, cosines
from torch import Tensor, nn

from recbole_prmkd.distil.baselines import BASELINES, Sizes, Step, Vectors
from recbole_prmkd.distil.baselines.covered import is_covered
from recbole_prmkd.distil.baselines.dcd import errors
from recbole_prmkd.distil.baselines.de import NUMBER, AllExperts
from recbole_prmkd.distil.baselines.hetcomp import distances, overall, turns
from recbole_prmkd.distil.baselines.ranking import teacher_ranking
from recbole_prmkd.distil.baselines.rrd import relaxed
from recbole_prmkd.distil.baselines.step import MASKED
from recbole_prmkd.distil.baselines.unkd import popularity_groups
from recbole_prmkd.distil.losses import kd_loss

OF_SCORES = ["cd", "dcd", "unkd", "rcekd", "hetcomp", "diverse"]
OF_VECTORS = ["de", "topology", "align"]
SETTINGS = {"kd_top_items": 3, "kd_rank_position": 2.0, "kd_rank_discrepancy": 0.5, "kd_popularity_groups": 2}
# One example with four candidates: the teachers' order is 2, 0, 3, 1; the student's 1, 2, 0, 3.
SCORES = torch.tensor([[0.5, 2.0, 1.0, -1.0]])
TARGET = torch.tensor([[0.3, 0.05, 0.5, 0.15]])
ALL = torch.ones(1, 4, dtype=torch.bool)


class Problem(NamedTuple):
    """A batch for any method that compares scores; scores are raw, as `kd_loss` gets them."""

    scores: Tensor  # [B, C]
    target: Tensor  # [B, C]
    mask: Tensor  # [B, C]
    columns: Tensor  # [B]
    soft: Tensor  # [T, B, C]
    popularity: Tensor  # [B, C]

    def step(self, **given: Any) -> Step:
        scores = torch.where(self.mask, self.scores, MASKED)
        step = Step(scores, self.target, self.mask, self.columns, SETTINGS, soft=self.soft, popularity=self.popularity)
        return step._replace(**given)

    def loss(self, name: str, **given: Any) -> Tensor:
        """As in training."""
        return kd_loss(self.scores, self.target, self.mask, 1.0, BASELINES[name], self.step(**given))


def worked(name: str, scores: Tensor = SCORES, target: Tensor = TARGET, **given: Any) -> Tensor:
    """The loss of the example above."""
    settings = {**SETTINGS, **{key: given.pop(key) for key in list(given) if key in SETTINGS}}
    step = Step(scores, target, ALL[:, : scores.shape[1]], torch.tensor([0]), settings)
    return BASELINES[name].loss(step._replace(**given))[0]


@st.composite
def problems(draw: st.DrawFn, empty: bool = False) -> Problem:
    scores, target, mask = draw(batches(empty=empty))
    size, width = mask.shape
    teachers = draw(st.integers(1, 3))
    ranks = st.lists(st.integers(-20, 20), min_size=width, max_size=width, unique=True)
    rows = st.lists(ranks, min_size=size, max_size=size)
    raw = torch.tensor(draw(st.lists(rows, min_size=teachers, max_size=teachers)))  # [T, B, C]
    possible = mask & (draw(bools(teachers, size, 1)) | (draw(bools(teachers, size, width))))
    soft = (raw / 5).masked_fill(~possible, NEG).softmax(-1).nan_to_num(0)  # [T, B, C]
    columns = torch.tensor(draw(st.lists(st.integers(-1, width - 1), min_size=size, max_size=size)))
    popularity = torch.tensor(draw(st.lists(st.integers(0, 3), min_size=size * width, max_size=size * width)))
    return Problem(scores, target, mask, columns, soft, popularity.view(size, width))


@st.composite
def vectors(draw: st.DrawFn, teachers: int = 2, gaps: bool = True) -> Vectors:
    """Of up to 4 examples; a student of width 3, teachers of widths 2, 3, ..."""
    size = draw(st.integers(1, 4))
    own = [draw(cosines(size, 3)) + 0.01 for _ in range(2)]
    theirs: list[list[Tensor]] = [[], []]
    for width in range(2, 2 + teachers):
        for kind in theirs:
            covered = draw(bools(size, 1)) if gaps else torch.ones(size, 1, dtype=torch.bool)
            kind.append((draw(cosines(size, width)) + 0.01) * covered)
    return Vectors(*own, *theirs)


def step_of(vectors: Vectors, name: str, progress: float = 0.0) -> Step:
    size = len(vectors.items)
    method = BASELINES[name]
    torch.manual_seed(3)
    sizes = Sizes(nn.Identity(), vectors.items.shape[1], [part.shape[1] for part in vectors.teacher_items])
    module = None if method.module is None else method.module(sizes)
    mask = torch.ones(size, 1, dtype=torch.bool)
    step = Step(torch.zeros(size, 1), torch.ones(size, 1), mask, torch.zeros(size, dtype=torch.int64), SETTINGS)
    return step._replace(vectors=vectors, module=module, progress=progress)


def losses_of(step: Step, name: str) -> Tensor:
    torch.manual_seed(5)  # of the experts' selection
    return BASELINES[name].loss(step)


def train(step: Step, name: str, optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Train the module of a method on one batch."""
    for _ in range(steps):
        optimizer.zero_grad()
        losses_of(step, name).sum().backward()
        optimizer.step()


# What each of them keeps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_SCORES)
@given(data=st.data())
def test_the_order_of_candidates_and_examples_changes_nothing(name: str, data: st.DataObject) -> None:
    problem = data.draw(problems(empty=True))
    size, width = problem.mask.shape
    order = torch.tensor(data.draw(st.permutations(range(width))))
    rows = torch.tensor(data.draw(st.permutations(range(size))))
    moved = Problem(
        *(part[rows][:, order] for part in problem[:3]),
        torch.where(problem.columns < 0, -1, order.argsort()[problem.columns])[rows],
        problem.soft[:, rows][:, :, order],
        problem.popularity[rows][:, order],
    )
    method = BASELINES[name]
    torch.testing.assert_close(method.loss(moved.step()), method.loss(problem.step())[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OF_SCORES)
@given(data=st.data())
def test_extreme_scores_stay_finite_and_masked_ones_do_not_count(name: str, data: st.DataObject) -> None:
    problem = data.draw(problems(empty=True))
    values = data.draw(st.lists(EXTREME, min_size=problem.mask.numel(), max_size=problem.mask.numel()))
    scores = torch.tensor(values).view_as(problem.scores).requires_grad_()
    problem = problem._replace(scores=scores)
    progress = data.draw(st.sampled_from([0.0, 0.5, 0.99]))
    loss = problem.loss(name, progress=progress)
    loss.backward()
    assert scores.grad is not None and bool(loss.isfinite()) and bool(scores.grad.isfinite().all())
    assert not scores.grad[~problem.mask].any()
    hidden = problem._replace(scores=scores.detach().masked_fill(~problem.mask, math.nan))
    torch.testing.assert_close(hidden.loss(name, progress=progress), loss.detach())


@pytest.mark.parametrize("name", OF_SCORES)
@given(problem=problems())
def test_without_a_covering_teacher_there_is_no_loss(name: str, problem: Problem) -> None:
    scores = problem.scores.clone().requires_grad_()
    problem = problem._replace(scores=scores, target=torch.zeros_like(scores), soft=torch.zeros_like(problem.soft))
    loss = problem.loss(name)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and not scores.grad.any()
    raw = BASELINES[name].loss(problem.step())  # before kd_loss leaves the examples out
    assert bool(raw.isfinite().all())


@pytest.mark.parametrize("name", OF_SCORES)
def test_scores_get_gradients_and_float64_stays(name: str) -> None:
    soft = torch.tensor([[[0.6, 0.1, 0.2, 0.1]], [[0.3, 0.05, 0.5, 0.15]]])
    popularity = torch.tensor([[5, 1, 5, 1]])
    problem = Problem(SCORES.double().requires_grad_(), TARGET, ALL, torch.tensor([0]), soft, popularity)
    problem.loss(name).backward()
    assert problem.scores.grad is not None and problem.scores.grad.dtype == torch.float64
    assert bool(problem.scores.grad.any())
    descended = problem._replace(scores=problem.scores.detach() - 0.01 * problem.scores.grad)
    assert descended.loss(name) < problem.loss(name)


@pytest.mark.parametrize("name", ["cd", "rcekd"])
@given(problem=problems())
def test_a_student_with_the_teachers_soft_targets_has_no_gradient(name: str, problem: Problem) -> None:
    mask = problem.target > 0  # where no teacher covers a candidate, nothing fits
    labels = problem.target / (problem.target + 1 / mask.sum(-1, keepdim=True))
    perfect = torch.where(mask, labels.logit() if name == "cd" else problem.target.log(), 0)
    problem = problem._replace(scores=perfect.double().requires_grad_(), mask=mask)
    problem.loss(name).backward()
    assert problem.scores.grad is not None
    torch.testing.assert_close(problem.scores.grad, torch.zeros_like(problem.scores.grad), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", OF_VECTORS)
@given(data=st.data())
def test_vectors_get_finite_gradients_and_uncovered_ones_none(name: str, data: st.DataObject) -> None:
    given_vectors = data.draw(vectors())
    own = [part.requires_grad_() for part in given_vectors[:2]]
    step = step_of(Vectors(*own, *given_vectors[2:]), name, data.draw(st.sampled_from([0.0, 0.5, 0.99])))
    losses = losses_of(step, name)
    losses.sum().backward()
    for student, teachers in zip(own, given_vectors[2:], strict=True):
        alone = torch.stack([is_covered(part) for part in teachers]).sum(0) == 0
        assert student.grad is not None and bool(student.grad.isfinite().all()) and not student.grad[alone].any()
    covered = torch.stack([is_covered(part) for kind in given_vectors[2:] for part in kind])  # [.., B]
    assert not losses[~covered.any(0)].any() and bool((losses >= -1e-6).all())
    parameters = list(step.module.parameters()) if step.module else []
    assert all(part.grad is None or bool(part.grad.isfinite().all()) for part in parameters)
    if bool(covered.all()):
        assert all(part.grad is not None for part in parameters)


@pytest.mark.parametrize("name", OF_VECTORS)
@given(given_vectors=vectors(gaps=False))
def test_two_equal_teachers_teach_what_one_does(name: str, given_vectors: Vectors) -> None:
    first = [kind[:1] for kind in given_vectors[2:]]
    one = step_of(Vectors(*given_vectors[:2], *first), name)
    twice = step_of(Vectors(*given_vectors[:2], *(kind * 2 for kind in first)), name)
    uncovered = step_of(Vectors(*given_vectors[:2], *([kind[0], torch.zeros_like(kind[0])] for kind in first)), name)
    for two in (twice, uncovered):
        if two.module is not None:  # both have the one's parameters; its experts have no choice to make
            state = {name.replace(".0.", ".1.", 1): value for name, value in one.module.state_dict().items()}
            two.module.load_state_dict({**one.module.state_dict(), **state})
        if name == "de":
            _choose_the_first(one.module)
            _choose_the_first(two.module)
        torch.testing.assert_close(losses_of(two, name), losses_of(one, name))


def _choose_the_first(module: nn.Module) -> None:
    """Make the selection certain."""
    for experts in [*module.histories, *module.items]:
        experts.selection.weight.data.zero_()
        experts.selection.bias.data.copy_(torch.tensor([1e4] + [0.0] * (NUMBER - 1)))


# cd -------------------------------------------------------------------------------------------------------------


def test_cd_by_hand() -> None:
    order, target, scores = [2, 0, 3, 1], TARGET[0].tolist(), SCORES[0].tolist()
    total = sum(math.exp(-rank / 2) for rank in (1, 2, 3, 4))
    expected = 0.0
    for rank, item in enumerate(order, start=1):
        label = target[item] / (target[item] + 0.25)
        positive = 1 / (1 + math.exp(-scores[item]))
        entropy = -label * math.log(positive) - (1 - label) * math.log(1 - positive)
        expected += math.exp(-rank / 2) / total * entropy
    assert worked("cd").item() == pytest.approx(expected, rel=1e-6)


# dcd ------------------------------------------------------------------------------------------------------------


def test_dcd_by_hand() -> None:
    # Items 2, 0, 3, 1 have ranks 0, 1, 2, 3 of the teachers and 1, 2, 3, 0 of the student.
    two, zero, three, one = (math.exp(score) for score in (1.0, 0.5, -1.0, 2.0))
    above = math.tanh(1.5) * one
    positions = [two / (two + zero + three + above), zero / (zero + three + above), three / (three + above)]
    assert worked("dcd").item() == pytest.approx(-sum(map(math.log, positions)) / 3, rel=1e-6)
    scores = torch.tensor([[-2.0, 1.0, 3.0, 0.0]])  # ranks 0, 3, 2, 1: item 0 is too low by 2, item 1 too high by 2
    zero, one = math.exp(-2.0), math.tanh(1.0) * math.exp(1.0)
    assert worked("dcd", scores).item() == pytest.approx(-math.log(zero / (zero + one)), rel=1e-6)
    assert worked("dcd", scores, kd_top_items=1).item() == 0  # item 2 is where it should be


def test_dcd_weighs_by_the_error() -> None:
    scores = torch.tensor([[0.0, -3.0, -1.0, 2.0]])  # ranks 2, 1, 0, 3 of 2, 0, 3, 1
    assert worked("dcd", scores).item() == pytest.approx(math.log(1 + math.tanh(1.0) * math.exp(3)), rel=1e-6)
    scores = torch.tensor([[2.0, 3.0, 1.0, 0.0]])  # ranks 2, 1, 3, 0 of them: 2 is too low by two, 3 by one
    above = math.tanh(1.5) * math.exp(3)
    two, three = math.log((math.e + 1 + above) / math.e), math.log(1 + above)
    expected = (math.tanh(1.0) * two + math.tanh(0.5) * three) / (math.tanh(1.0) + math.tanh(0.5))
    assert worked("dcd", scores).item() == pytest.approx(expected, rel=1e-6)
    target = torch.tensor([[0.4, 0.3, 0.2, 0.1]])
    under, over = errors(torch.tensor([[1.0, 0.0, 2.0, 3.0]]), target > 0, 4, 0.5)  # ranks 2, 3, 1, 0
    assert under[0].tolist() == pytest.approx([math.tanh(1), math.tanh(1), 0, 0])
    assert over[0].tolist() == pytest.approx([0, 0, math.tanh(0.5), math.tanh(1.5)])


@given(problems())
def test_dcd_corrects_nothing_where_the_ranks_agree(problem: Problem) -> None:
    scores = (10 * problem.target).requires_grad_()
    agreeing = problem._replace(scores=scores)
    loss = agreeing.loss("dcd")
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and not scores.grad.any()


@given(problems())
def test_dcd_with_any_error_in_full_is_rrds_loss_of_its_items(problem: Problem) -> None:
    step = problem.step(settings={**SETTINGS, "kd_rank_discrepancy": 1e9})
    columns, listed = teacher_ranking(step.target, step.mask, step.target.shape[1])
    ordered = step.scores.gather(1, columns).masked_fill(~listed, MASKED)
    under, over = errors(ordered, listed, 3, 1e9)
    place = torch.arange(ordered.shape[1]).expand_as(ordered)
    # relaxed() wants the listed items first, which the underestimated ones of a ranking need not be.
    order = (under == 0).to(torch.int8).argsort(dim=1, stable=True)
    involved = (under > 0) | (over > 0)
    masked = ordered.masked_fill(~involved, MASKED)
    expected = relaxed(masked, place.gather(1, order), (under > 0).gather(1, order), involved)
    torch.testing.assert_close(BASELINES["dcd"].loss(step), expected)


# unkd -----------------------------------------------------------------------------------------------------------


def test_unkd_by_hand() -> None:
    popularity = torch.tensor([[9, 1, 2, 8]])  # groups {0, 3} and {1, 2}: 0 above 3, 2 above 1
    expected = (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(1.0))) / 2
    assert worked("unkd", popularity=popularity).item() == pytest.approx(expected, rel=1e-6)
    alone = torch.tensor([[0.3, 0.0, 0.5, 0.2]])  # no teacher covers item 1, so only the first group has a pair
    loss = worked("unkd", target=alone, popularity=popularity)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.5)), rel=1e-6)
    # One group, three items: ranks 1, 2, 3 of the items 2, 0, 3.
    pairs = {(1, 2): math.log(1 + math.exp(-0.5)), (1, 3): math.log(1 + math.exp(-2.0))}
    pairs[2, 3] = math.log(1 + math.exp(-1.5))
    weights = {pair: math.exp(-sum(pair) / 2) for pair in pairs}
    expected = sum(weights[pair] * pairs[pair] for pair in pairs) / sum(weights.values())
    loss = worked("unkd", popularity=popularity, kd_popularity_groups=1)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert worked("unkd", popularity=popularity, kd_popularity_groups=4).item() == 0  # alone, nobody has a pair


@given(problems(), st.integers(1, 5))
def test_popularity_groups_are_alike_in_size_and_in_popularity(problem: Problem, number: int) -> None:
    popularity = torch.arange(problem.mask.shape[1]).expand_as(problem.mask)  # no ties
    members = popularity_groups(popularity, problem.mask, number)
    assert torch.equal(members.any(1), problem.mask) and torch.equal(members.sum(1), problem.mask.long())
    sizes, counted = members.sum(-1), problem.mask.sum(-1, keepdim=True)
    assert bool((sizes >= counted // number).all()) and bool((sizes <= -(-counted // number)).all())
    tied = popularity_groups(problem.popularity, problem.mask, number)
    for row, counts, values in zip(tied, problem.mask, problem.popularity, strict=True):
        group = row.int().argmax(0)
        assert all(len(set(group[counts & (values == value)].tolist())) <= 1 for value in range(4))
        assert group[counts][values[counts].argsort()].diff().ge(0).all()


@given(problems())
def test_unkd_is_0_for_a_student_that_has_the_teachers_order_by_far(problem: Problem) -> None:
    sure = problem._replace(scores=torch.where(problem.target > 0, problem.target.log() * 1e3, -1e6))
    assert sure.loss("unkd").item() == pytest.approx(0, abs=1e-6)


# hetcomp --------------------------------------------------------------------------------------------------------


def test_hetcomps_distance_by_hand() -> None:
    soft = torch.stack([TARGET, torch.tensor([[0.2, 0.5, 0.25, 0.05]]), torch.zeros(1, 4)])  # 2 0 3 1, 1 2 0 3
    gains = [2 ** math.exp(-place / 10) - 1 for place in range(3)]
    ideal = sum(gain / math.log2(2 + place) for place, gain in enumerate(gains))
    found = gains[0] / math.log2(3) + gains[1] / math.log2(4)  # items 2 and 0; item 3 is not among the first 3
    expected = [1 - found / ideal, 0, math.inf]
    assert distances(SCORES, soft, ALL, 3)[:, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_hetcomp_goes_from_the_nearest_teacher_to_all() -> None:
    soft = torch.stack([TARGET, torch.tensor([[0.2, 0.5, 0.25, 0.05]])])
    near, both = soft[1], soft.sum(0)
    for progress in (0.0, 0.49):
        for number in (1, 3):  # of one item, the first teacher's would be 2, the nearest one's is 1
            loss = worked("hetcomp", soft=soft, progress=progress, kd_top_items=number)
            torch.testing.assert_close(loss, overall(SCORES, *teacher_ranking(near, ALL, number))[0])
    expected = relaxed(SCORES, *teacher_ranking(both, ALL, 3), ALL)
    torch.testing.assert_close(worked("hetcomp", soft=soft, progress=0.5), expected[0])


def test_hetcomps_overall_loss_by_hand() -> None:
    two, zero, three, one = (math.exp(score) for score in (1.0, 0.5, -1.0, 2.0))
    expected = -sum(math.log(item / (item + one)) for item in (two, zero, three)) / 3
    columns, listed = teacher_ranking(TARGET, ALL, 3)
    assert overall(SCORES, columns, listed).item() == pytest.approx(expected, rel=1e-6)
    assert overall(SCORES, columns.flip(1), listed).item() == pytest.approx(expected, rel=1e-6)


def test_turns() -> None:
    distance = torch.tensor([[0.5, 0.1], [0.2, math.inf], [0.3, math.inf]])
    for progress, first in [(0.0, [0, 1, 0]), (0.4, [0, 1, 1]), (0.7, [1, 1, 1])]:
        teaching, all_teach = turns(distance, progress)
        assert teaching.int()[:, 0].tolist() == first and all_teach.tolist() == [sum(first) == 3, True]
        assert teaching.int()[:, 1].tolist() == [1, 0, 0]


@given(problems(), st.sampled_from([0.0, 0.6]))
def test_hetcomp_of_one_teacher_is_rrd(problem: Problem, progress: float) -> None:
    step = problem.step(soft=problem.soft[:1], target=problem.soft[0], progress=progress)
    torch.testing.assert_close(BASELINES["hetcomp"].loss(step), BASELINES["rrd"].loss(step))


# rcekd ----------------------------------------------------------------------------------------------------------


def test_rcekd_by_hand() -> None:
    # Two each: the teachers' 2 and 0, the student's 1 and 2. The rest is 0, and above it the student has 1 and 2.
    def cross_entropy(items: list[int]) -> float:
        student, teachers = SCORES[0, items].log_softmax(-1), TARGET[0, items] / TARGET[0, items].sum()
        return -(teachers * student).sum().item()

    gamma = math.exp(-5 / 2)
    expected = (1 - gamma) * cross_entropy([1, 2]) + gamma * cross_entropy([0, 1, 2])
    assert worked("rcekd", kd_top_items=2).item() == pytest.approx(expected, rel=1e-6)
    # One each, and nothing in common: all that the student ranks as high as 2, which are 1 and 2.
    assert worked("rcekd", kd_top_items=1).item() == pytest.approx(cross_entropy([1, 2]), rel=1e-6)
    # The same first items: the first cross entropy alone, but for its weight.
    loss = worked("rcekd", kd_top_items=4).item()
    assert loss == pytest.approx((1 - math.exp(-5)) * cross_entropy([0, 1, 2, 3]), rel=1e-6)


# diverse --------------------------------------------------------------------------------------------------------


def test_diverse_by_hand() -> None:
    student = SCORES.softmax(-1)[0]  # 0.14, 0.62, 0.23, 0.03
    soft = torch.stack([TARGET, torch.tensor([[0.1, 0.5, 0.3, 0.1]]), torch.tensor([[0.7, 0.1, 0.1, 0.1]])])
    target = (soft[0, 0] + soft[2, 0]) / 2  # the second gives item 0 less than the student does
    expected = sum(p * math.log(p / q) for p, q in zip(target.tolist(), student.tolist(), strict=True))
    assert worked("diverse", soft=soft).item() == pytest.approx(expected, rel=1e-5)
    assert worked("diverse", soft=soft, columns=torch.tensor([1])).item() == 0  # the student is ahead of all
    assert worked("diverse", soft=soft, columns=torch.tensor([-1])).item() == 0


def test_diverse_compares_over_what_the_teacher_covers() -> None:
    scores = torch.tensor([[0.0, 0.0, 3.0, 3.0]])
    soft = torch.tensor([[[0.4, 0.6, 0.0, 0.0]]])  # of the two that it covers the student gives item 0 half
    assert worked("diverse", scores, soft=soft).item() == 0
    assert worked("diverse", scores, soft=soft, columns=torch.tensor([1])).item() > 0


@given(problems())
def test_diverse_is_0_for_a_student_that_is_its_teacher(problem: Problem) -> None:
    mask = problem.target > 0
    problem = problem._replace(scores=torch.where(mask, problem.target.log(), 0), mask=mask, soft=problem.target[None])
    assert problem.loss("diverse").item() == pytest.approx(0, abs=1e-5)


@given(problems())
def test_diverse_ignores_who_teaches_nothing_new(problem: Problem) -> None:
    step = problem.step()
    equal = torch.cat([problem.soft, problem.soft, torch.zeros_like(problem.soft[:1])])
    torch.testing.assert_close(BASELINES["diverse"].loss(step._replace(soft=equal)), BASELINES["diverse"].loss(step))


# de -------------------------------------------------------------------------------------------------------------


def test_de_by_hand() -> None:
    histories, items = torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    step = step_of(Vectors(torch.ones(2, 3), torch.ones(2, 3), [histories], [items]), "de")
    assert isinstance(step.module, AllExperts)
    for part in step.module.parameters():
        part.data.zero_()
    for kind in (step.module.histories, step.module.items):
        for expert in kind[0].experts:  # whichever is chosen, and however much
            expert[2].bias.data.copy_(torch.tensor([1.0, 1.0]))
    # (2, 1) and (3, 4) are covered, one of each example.
    assert losses_of(step, "de").tolist() == pytest.approx([1.0, 13.0])


@pytest.mark.parametrize("progress", [0.0, 0.99])
def test_des_selection_goes_from_a_mixture_to_one_expert(progress: float) -> None:
    own, nothing = torch.ones(64, 3), torch.zeros(64, 2)
    step = step_of(Vectors(own, own, [nothing], [torch.ones(64, 2)]), "de", progress)
    assert isinstance(step.module, AllExperts)
    for number, expert in enumerate(step.module.items[0].experts):
        for part in expert.parameters():
            part.data.zero_()
        expert[2].bias.data.fill_(1 + number)
    chosen = (losses_of(step, "de") / 2).sqrt()  # the number of the expert, or between those of several
    alone = (chosen - chosen.round()).abs() < 0.01
    assert alone.float().mean() > 0.9 if progress else alone.float().mean() < 0.5
    assert len(chosen.round().unique()) == NUMBER or not progress


@given(vectors(teachers=1, gaps=False))
def test_training_brings_des_experts_nearer(given_vectors: Vectors) -> None:
    step = step_of(given_vectors, "de", progress=0.9)
    first = losses_of(step, "de").sum()
    train(step, "de", torch.optim.Adam(step.module.parameters(), lr=0.03), steps=20)
    assert losses_of(step, "de").sum() < first


# topology -------------------------------------------------------------------------------------------------------


def test_topology_by_hand() -> None:
    across, along = [0.0, 1.0], [1.0, 0.0]
    student = Vectors(
        torch.tensor([along, along]),
        torch.tensor([across, along]),
        [torch.tensor([[2.0, 0, 0], [0, 5, 0]])],
        [torch.tensor([[0.0, 3, 0], [0, 0, 0]])],
    )
    # Rows h1, h2, i1 of three covered vectors. Student: h1 h2 = 1, h1 i1 = 0, h2 i1 = 0. Teacher: 0, 0, 1.
    rows = {"h1": 1 / 3, "h2": 2 / 3, "i1": 1 / 3}
    losses = losses_of(step_of(student, "topology"), "topology").tolist()
    assert losses == pytest.approx([(rows["h1"] + rows["i1"]) / 2, rows["h2"]])


@given(vectors(teachers=1))
def test_topology_is_0_for_any_rotation_and_length(given_vectors: Vectors) -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    teachers = [[7 * part @ turn] for part in given_vectors[:2]]
    step = step_of(Vectors(*given_vectors[:2], *teachers), "topology")
    assert losses_of(step, "topology").tolist() == pytest.approx([0.0] * len(given_vectors.items), abs=1e-5)


# align ----------------------------------------------------------------------------------------------------------


def test_align_by_hand() -> None:
    given_vectors = Vectors(
        torch.tensor([[3.0, 0.0], [1.0, 1.0]]),
        torch.tensor([[0.0, 2.0], [1.0, 0.0]]),
        [torch.tensor([[1.0, 1.0], [0.0, 0.0]])],
        [torch.tensor([[0.0, -1.0], [5.0, 0.0]])],
    )
    step = step_of(given_vectors, "align")
    step.module.maps[0].weight.data.copy_(torch.eye(2))
    step.module.maps[0].bias.data.zero_()
    assert losses_of(step, "align").tolist() == pytest.approx([(1 - math.sqrt(0.5) + 2) / 2, 0.0], abs=1e-6)


@given(vectors(teachers=1, gaps=False))
def test_align_trains_its_map_towards_fixed_vectors(given_vectors: Vectors) -> None:
    step = step_of(given_vectors, "align")
    first = losses_of(step, "align").sum()
    train(step, "align", torch.optim.SGD(step.module.parameters(), lr=0.02), steps=10)
    assert losses_of(step, "align").sum() <= first + 1e-6
