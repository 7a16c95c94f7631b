"""The distillation loss in all its forms: torch's own numbers, right gradients, and calm at every extreme."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from strategies import EXTREME, NAN, NEG, Batch, batches, bools, remark
from torch import Tensor

from recbole_prmkd.distil.baselines import BASELINES, Step
from recbole_prmkd.distil.losses import LOSSES, kd_loss
from recbole_prmkd.recbole_host.keys import defaults

# Those that learn from scores and fused target alone; `test_kd_methods` has the others.
BY_SCORES = ("rd", "rrd", "dllm2rec")
KINDS = sorted([*LOSSES, *BY_SCORES])
SETTINGS = {**defaults(), "kd_top_items": 3, "kd_rank_discrepancy": 0.5, "kd_rank_warm_up": 0}
TEMPERATURE = st.sampled_from([0.07, 0.5, 1.0, 4.0])


def loss_of(kind: str, scores: Tensor, target: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
    remark(kind)
    if kind in LOSSES:
        return kd_loss(scores, target, mask, temperature, kind)
    step = Step(scores, target, mask, columns=target.argmax(-1), settings=SETTINGS)
    return kd_loss(scores, target, mask, temperature, BASELINES[kind], step)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def plain(seed: int) -> Batch:
    """Random scores without ties, targets, and a mask that hides some columns, never the first."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(6, 9, generator=generator)
    mask = torch.rand(6, 9, generator=generator) > 0.3
    mask[:, 0] = True
    return Batch(scores, torch.randn(6, 9, generator=generator).masked_fill(~mask, NEG).softmax(-1), mask)


@given(batches(), TEMPERATURE)
def test_kl_ce_and_mse_equal_torch(batch: Batch, temperature: float) -> None:
    scores, everything = batch.scores, torch.ones_like(batch.mask)
    target = (batch.target + 0.01) / (batch.target + 0.01).sum(-1, keepdim=True)
    student = (scores / temperature).log_softmax(-1)
    expected = {
        "kl": F.kl_div(student, target, reduction="batchmean") * temperature**2,
        "ce": F.cross_entropy(scores / temperature, target),
        "mse": F.mse_loss(student.exp(), target, reduction="sum") / len(scores),
    }
    for kind, loss in expected.items():
        close(loss_of(kind, scores, target, everything, temperature), loss)


@given(batches(empty=True), TEMPERATURE)
def test_it_is_the_mean_over_examples_with_a_target_of_their_own_candidates_alone(
    batch: Batch, temperature: float
) -> None:
    """What is masked, or has no target, may hold anything, gets exactly no gradient and counts nothing."""
    scores, target, mask = batch
    has_target = target.sum(-1) > 0
    broken = scores.masked_fill(~mask | ~has_target[:, None], NAN).requires_grad_()
    for kind in KINDS:
        loss = loss_of(kind, broken, target.masked_fill(~mask, 0.5), mask, temperature)
        alone = [
            loss_of(kind, row[counts][None], aim[counts][None], counts[counts][None], temperature)
            for row, aim, counts in zip(scores[has_target], target[has_target], mask[has_target], strict=True)
        ]
        close(loss, torch.stack(alone).mean() if alone else torch.tensor(0.0))
        assert loss >= -1e-6
        (gradient,) = torch.autograd.grad(loss, broken)
        assert bool((gradient[~mask | ~has_target[:, None]] == 0).all()) and bool(gradient.isfinite().all())


@given(batches(empty=True), st.data())
def test_the_order_of_candidates_and_examples_is_irrelevant(batch: Batch, data: st.DataObject) -> None:
    rows, columns = (data.draw(st.permutations(range(size))) for size in batch.scores.shape)
    for kind in KINDS:
        close(loss_of(kind, *(part[rows][:, columns] for part in batch)), loss_of(kind, *batch))


@given(batches(), st.sampled_from([-2.0, 0.5, 10.0]))
def test_a_constant_added_to_the_scores_changes_nothing(batch: Batch, constant: float) -> None:
    for kind in (kind for kind in KINDS if kind != "rd"):  # which takes each score by itself
        shifted = loss_of(kind, batch.scores + constant, batch.target, batch.mask)
        torch.testing.assert_close(shifted, loss_of(kind, *batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_candidate_that_counts_gets_a_gradient_and_it_is_right(kind: str) -> None:
    scores, target, mask = plain(3)
    target[2] = 0  # an example without a target
    target[3] = F.one_hot(torch.tensor(0), 9)  # and one with zeros in it
    scores, target = scores.double().requires_grad_(), target.double()
    for temperature in (0.5, 2.0):
        assert torch.autograd.gradcheck(lambda s, t=temperature: loss_of(kind, s, target, mask, t), scores)
    (gradient,) = torch.autograd.grad(loss_of(kind, scores, target, mask), scores)
    if kind != "rd":  # which looks at listed items alone
        mask[2] = False
        assert bool((gradient[mask] != 0).all())


@given(batches(), TEMPERATURE)
def test_a_perfect_student_has_no_loss_and_no_gradient(batch: Batch, temperature: float) -> None:
    _, target, mask = batch
    scores = (temperature * target.log()).clamp(min=-1e9).requires_grad_()
    for kind in ("kl", "mse"):
        loss = loss_of(kind, scores, target, mask, temperature)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert abs(loss.item()) < 1e-5 and gradient.abs().max() < 1e-5


@given(batches(), TEMPERATURE)
def test_gradients_of_kl_and_ce_are_the_difference_of_the_probabilities(batch: Batch, temperature: float) -> None:
    scores, target, mask = batch
    scores.requires_grad_()
    student = (scores.detach() / temperature).masked_fill(~mask, NEG).softmax(-1)
    for kind, factor in (("kl", temperature), ("ce", 1 / temperature)):
        (gradient,) = torch.autograd.grad(loss_of(kind, scores, target, mask, temperature), scores)
        close(gradient, factor * (student - target) / len(scores))


@given(st.lists(EXTREME, min_size=4, max_size=4), st.sampled_from([0.01, 1.0]), bools(1, 4))
def test_extremes_are_finite(scores: list[float], temperature: float, mask: Tensor) -> None:
    student = torch.tensor([scores], requires_grad=True)
    mask[0, 0] = True
    for kind in KINDS:
        loss = loss_of(kind, student, torch.tensor([[0.5, 0.25, 0.0, 0.25]]), mask, temperature)
        (gradient,) = torch.autograd.grad(loss, student)
        assert bool(loss.isfinite()) and bool(gradient.isfinite().all())


def test_a_huge_mistake_still_has_its_gradient() -> None:
    scores = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss_of("kl", scores, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)).backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[1.0, -1.0]]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rd"])
def test_one_candidate_teaches_nothing_however_low_it_stands(kind: str) -> None:
    scores, mask = torch.tensor([[-1e4, 1e4]], requires_grad=True), torch.tensor([[True, False]])
    loss = loss_of(kind, scores, torch.tensor([[1.0, 0.0]]), mask)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and not bool(scores.grad.any())


@given(batches(empty=True))
def test_half_precision_and_autocast_are_computed_in_float32(batch: Batch) -> None:
    half = batch.scores.bfloat16()
    for kind in KINDS:
        expected = loss_of(kind, half.float(), *batch[1:], 0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(kind, half, *batch[1:], 0.1)
        assert loss.dtype == torch.float32 and torch.equal(loss, expected)


@given(batches(empty=True))
def test_float32_gives_what_float64_gives_and_input_stays_as_it_was(batch: Batch) -> None:
    before = [part.clone() for part in batch]
    double = batch.scores.double(), batch.target.double(), batch.mask
    for kind in KINDS:
        loss, expected = loss_of(kind, *batch, 0.5), loss_of(kind, *double, 0.5)
        assert loss.dtype == torch.float32 and expected.dtype == torch.float64
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(part, old) for part, old in zip(batch, before, strict=True))


def test_the_target_gets_no_gradient() -> None:
    scores, target, mask = plain(9)
    target.requires_grad_()
    for kind in KINDS:
        loss_of(kind, scores.requires_grad_(), target, mask).backward()
        assert target.grad is None


def test_wrong_shapes_ranges_and_names_raise() -> None:
    scores, target, mask = plain(10)
    with pytest.raises(ValueError, match=r"same \[B, C\]"):
        kd_loss(scores, target[:1], mask, 1.0, "kl")
    for temperature in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match="temperature"):
            kd_loss(scores, target, mask, temperature, "kl")
    with pytest.raises(KeyError):
        kd_loss(scores, target, mask, 1.0, "unknown")
    with pytest.raises(ValueError, match="needs a step"):
        kd_loss(scores, target, mask, 1.0, BASELINES["rrd"])
