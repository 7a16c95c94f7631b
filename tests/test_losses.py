"""The distillation loss: equal to torch's own, right gradients, and calm at every extreme."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_prmkd.distil.losses import LOSSES, kd_loss

KINDS = sorted(LOSSES)
NEG = -torch.inf


def batch(seed: int, rows: int = 6, candidates: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Random scores, targets and a mask that hides some columns; column 0 always counts."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(rows, candidates, generator=generator)
    mask = torch.rand(rows, candidates, generator=generator) > 0.3
    mask[:, 0] = True
    target = torch.randn(rows, candidates, generator=generator).masked_fill(~mask, NEG).softmax(-1)
    return scores, target, mask


@pytest.mark.parametrize("temperature", [0.07, 1.0, 4.0])
@pytest.mark.parametrize("seed", range(3))
def test_kl_and_ce_equal_torch(seed: int, temperature: float) -> None:
    scores, target, _ = batch(seed)
    target = (target + 0.01) / (target + 0.01).sum(-1, keepdim=True)
    everything = torch.ones_like(target, dtype=torch.bool)
    student = (scores / temperature).log_softmax(-1)
    kl = F.kl_div(student, target, reduction="batchmean") * temperature**2
    ce = F.cross_entropy(scores / temperature, target)
    mse = F.mse_loss(student.exp(), target, reduction="sum") / len(scores)
    for kind, expected in (("kl", kl), ("ce", ce), ("mse", mse)):
        torch.testing.assert_close(
            kd_loss(scores, target, everything, temperature, kind), expected, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_masked_columns_could_as_well_be_absent(kind: str) -> None:
    scores, target, mask = batch(1, rows=1)
    short = mask[0]
    expected = kd_loss(scores[:, short], target[:, short], mask[:, short], 0.5, kind)
    torch.testing.assert_close(kd_loss(scores, target, mask, 0.5, kind), expected, rtol=1e-6, atol=1e-6)
    assert not bool(short.all())


@pytest.mark.parametrize("kind", KINDS)
def test_masked_columns_get_exactly_no_gradient_and_others_some(kind: str) -> None:
    scores, target, mask = batch(2)
    scores = scores.masked_fill(~mask, torch.nan).requires_grad_()  # even what is no number there does no harm
    kd_loss(scores, target, mask, 1.0, kind).backward()
    assert scores.grad is not None
    assert bool((scores.grad[~mask] == 0).all()) and bool((scores.grad[mask] != 0).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_gradcheck(kind: str, temperature: float) -> None:
    scores, target, mask = batch(3)
    target[2] = 0  # a row without a target
    target[3] = torch.nn.functional.one_hot(torch.tensor(0), 9)  # and one with zeros in it
    scores, target = scores.double().requires_grad_(), target.double()
    assert torch.autograd.gradcheck(lambda s: kd_loss(s, target, mask, temperature, kind), scores)


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_a_perfect_student_has_no_loss_and_no_gradient(kind: str) -> None:
    _, target, mask = batch(4)
    scores = (2 * target.log()).clamp(min=-1e9).requires_grad_()  # temperature 2
    loss = kd_loss(scores, target, mask, 2.0, kind)
    loss.backward()
    assert scores.grad is not None
    assert abs(loss.item()) < 1e-6 and scores.grad.abs().max() < 1e-6


def test_kl_gradient_is_temperature_times_the_difference() -> None:
    scores, target, mask = batch(5)
    scores.requires_grad_()
    kd_loss(scores, target, mask, 3.0, "kl").backward()
    student = (scores.detach() / 3).masked_fill(~mask, NEG).softmax(-1)
    torch.testing.assert_close(scores.grad, 3 * (student - target) / len(scores), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_target_are_left_out(kind: str) -> None:
    scores, target, mask = batch(6)
    gappy, broken = target.clone(), scores.clone()
    gappy[[1, 4]] = 0
    broken[1] = torch.nan
    broken.requires_grad_()
    rest = [0, 2, 3, 5]
    loss = kd_loss(broken, gappy, mask, 1.0, kind)
    torch.testing.assert_close(loss, kd_loss(scores[rest], target[rest], mask[rest], 1.0, kind), rtol=1e-6, atol=1e-6)
    loss.backward()
    assert broken.grad is not None
    assert bool((broken.grad[[1, 4]] == 0).all()) and bool(broken.grad.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_target_says_of_masked_columns_is_ignored(kind: str) -> None:
    scores, target, mask = batch(11)
    assert not bool(mask.all())
    assert torch.equal(
        kd_loss(scores, target.masked_fill(~mask, 0.5), mask, 1.0, kind),
        kd_loss(scores, target, mask, 1.0, kind),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_no_target_at_all_is_a_zero_that_can_be_backpropagated(kind: str) -> None:
    scores, target, mask = batch(7)
    scores.requires_grad_()
    loss = kd_loss(scores, torch.zeros_like(target), mask, 1.0, kind)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and bool((scores.grad == 0).all())


EXTREMES = {
    "huge": [[1e4, -1e4, 0.0, 5e3]],
    "all equal": [[2.0, 2.0, 2.0, 2.0]],
    "minus infinity": [[NEG, 1.0, 0.0, 2.0]],
    "nothing but minus infinity": [[NEG, NEG, NEG, NEG]],
    "plus infinity": [[torch.inf, 1.0, 0.0, 2.0]],
    "largest number": [[3e38, -3e38, 0.0, 1.0]],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("case", sorted(EXTREMES))
def test_extremes_are_finite(case: str, temperature: float, kind: str) -> None:
    scores = torch.tensor(EXTREMES[case], requires_grad=True)
    target = torch.tensor([[0.5, 0.25, 0.0, 0.25]])
    loss = kd_loss(scores, target, torch.ones(1, 4, dtype=torch.bool), temperature, kind)
    loss.backward()
    assert scores.grad is not None
    assert bool(loss.isfinite()) and bool(scores.grad.isfinite().all())


def test_a_huge_mistake_still_has_its_gradient() -> None:
    scores = torch.tensor([[1e4, -1e4]], requires_grad=True)
    kd_loss(scores, torch.tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool), 1.0, "kl").backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[1.0, -1.0]]))


@pytest.mark.parametrize("kind", ["kl", "ce", "mse"])
def test_one_candidate_teaches_nothing(kind: str) -> None:
    scores = torch.tensor([[1e4]], requires_grad=True)
    loss = kd_loss(scores, torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), 1.0, kind)
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and scores.grad.item() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_autocast_are_computed_in_float32(kind: str) -> None:
    scores, target, mask = batch(8)
    half = scores.bfloat16()
    expected = kd_loss(half.float(), target, mask, 0.1, kind)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kd_loss(half, target, mask, 0.1, kind)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_input_stays_as_it_was(kind: str) -> None:
    given = batch(12)
    before = [tensor.clone() for tensor in given]
    kd_loss(*given, 0.5, kind)
    assert all(torch.equal(tensor, old) for tensor, old in zip(given, before, strict=True))


def test_the_target_gets_no_gradient() -> None:
    scores, target, mask = batch(9)
    target.requires_grad_()
    kd_loss(scores.requires_grad_(), target, mask, 1.0, "kl").backward()
    assert target.grad is None


def test_what_cannot_be_is_refused() -> None:
    scores, target, mask = batch(10)
    with pytest.raises(ValueError, match=r"same \[B, C\]"):
        kd_loss(scores, target[:1], mask, 1.0, "kl")
    with pytest.raises(ValueError, match="temperature"):
        kd_loss(scores, target, mask, 0.0, "kl")
    with pytest.raises(KeyError):
        kd_loss(scores, target, mask, 1.0, "unknown")
