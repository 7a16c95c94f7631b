"""From the scores of several teachers to one target per example: soft targets, confidence, consistency, fusion.

Confidence says how far a teacher is trusted on an example. Consistency says whether it agrees with the other teachers
on one candidate. `fuse` makes both a weight per (example, candidate, teacher), as in the figure of arXiv 2401.00797.
The figure gives no formula, so every rule here is our choice unless it names a source.

When to use which. Confidence: `probability` follows the paper's idea, `label_ce` is CA-MKD's milder form of it,
`entropy` needs no label, `validation` trusts a teacher equally on all examples, `uniform` is a plain average.
Consistency: `std`, `outlier`, `vote` and `vote_uniform` all give the figure's nine marks; `none` does without.

Axes: T teachers, B batch examples, C candidates. `mask` [B, C] says what counts as a candidate. `covered` [T, B, C],
or [T, B] for whole examples, says what a teacher has scores for; it gets no weight elsewhere. Float64 stays float64,
all else is computed in float32, under autocast too.

Operations on bools are slow on a CPU, so `mask`, `covered` and marks may be 1.0 and 0.0 instead. Then `covered` must be
0 where `mask` is, and soft targets must be 0 where `covered` is. No argument is changed in place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 1e-6  # of the largest score that is compared: rounding alone never makes two teachers differ


def soft_targets(scores: Tensor, temperature: Tensor, mask: Tensor) -> Tensor:
    """Softmax of each teacher's scores over an example's candidates ("Normalized Scores" in arXiv 2401.00797).

    Args:
        scores: [T, B, C] raw scores; NaN: the teacher does not cover this candidate, which counts as masked for it.
        temperature: [T], > 0, each teacher's own training temperature.
        mask: [B, C], bool or 1.0 and 0.0.

    Returns:
        [T, B, C], 0 where masked, else summing to 1 over C; an example with no score above -inf is 0 throughout.

    Raises:
        ValueError: the shapes do not fit.
    """
    if scores.dim() != 3 or scores.shape != temperature.shape + mask.shape:
        got = [list(tensor.shape) for tensor in (scores, temperature, mask)]
        raise ValueError(f"Need scores [T, B, C], temperature [T] and mask [B, C], got {got}.")
    with torch.autocast(scores.device.type, enabled=False):
        scores = _upcast(scores)
        limit = torch.finfo(scores.dtype).max
        share = scores + (1 - 1 / mask.to(scores))  # [T, B, C]; -inf where masked; from here on in place
        share.nan_to_num_(nan=-torch.inf, posinf=limit, neginf=-torch.inf)
        top = share.amax(-1, keepdim=True).clamp_(min=-limit)  # [T, B, 1]
        # The maximum goes before the division: neither large scores nor small temperatures overflow.
        share.sub_(top).div_(temperature.to(scores).view(-1, 1, 1)).exp_()
        return share.div_(_or_one(share.sum(-1, keepdim=True)))


def by_probability(soft: Tensor, columns: Tensor, covered: Tensor, validation: Tensor | None = None) -> Tensor:
    """The probability that a teacher gives the example's true item, normalised over the teachers."""
    return _over_teachers(_of_true_item(soft, columns), _has_say(soft, covered))


def by_entropy(soft: Tensor, columns: Tensor, covered: Tensor, validation: Tensor | None = None) -> Tensor:
    """1 - H_k / sum_j H_j, normalised; H = entropy of the soft targets (EBKD, Kwon et al., ICASSP 2020).

    Soft targets that sum to s < 1, the share of the candidates that a teacher covers, have H - log s: the entropy over
    all candidates if the others were like the covered ones (our choice).
    """
    say = _has_say(soft, covered)  # [T, B]
    soft = _upcast(soft)
    logs = soft.clamp(min=torch.finfo(soft.dtype).tiny).log_()  # [T, B, C]; torch.xlogy takes several times as long
    entropy = -logs.mul_(soft).sum(-1).clamp(max=0)  # [T, B]
    entropy = _divide(entropy, soft.sum(-1)).masked_fill(~say, 0)
    return _over_teachers(1 - _divide(entropy, entropy.sum(0)), say)


def by_label_ce(soft: Tensor, columns: Tensor, covered: Tensor, validation: Tensor | None = None) -> Tensor:
    """1 - softmax_k(CE of the true item), normalised (CA-MKD, arXiv 2201.00007; there at temperature 1)."""
    probability, say = _of_true_item(soft, columns), _has_say(soft, covered)  # [T, B]
    cross_entropy = -probability.clamp(min=torch.finfo(probability.dtype).tiny).log()  # [T, B]
    return _over_teachers(1 - cross_entropy.masked_fill(~say, -torch.inf).softmax(0), say)


def by_validation(soft: Tensor, columns: Tensor, covered: Tensor, validation: Tensor | None = None) -> Tensor:
    """A given number >= 0 per teacher, such as its validation NDCG, normalised; ValueError if it is missing."""
    # What stands on a GPU is not looked at, since that waits for it.
    if validation is None or validation.shape != soft.shape[:1] or not (validation.is_cuda or (validation >= 0).all()):
        raise ValueError(f"validation must be {len(soft)} numbers >= 0, one per teacher, got {validation}.")
    return _over_teachers(validation.to(_upcast(soft)).unsqueeze(1).expand_as(covered), _has_say(soft, covered))


def by_uniform(soft: Tensor, columns: Tensor, covered: Tensor, validation: Tensor | None = None) -> Tensor:
    """The same weight for every teacher that covers the example."""
    return _over_teachers(torch.ones_like(_upcast(soft[..., 0])), _has_say(soft, covered))


# (soft [T, B, C], columns [B] of the true items, covered [T, B], validation [T] or None) -> weights [T, B], >= 0: 0 for
# a teacher that does not cover the example (or whose soft targets are 0 throughout), sum 1 over the others, equal where
# all of these score 0. All 0 where no teacher covers the example.
CONFIDENCE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "probability": by_probability,
    "entropy": by_entropy,
    "label_ce": by_label_ce,
    "validation": by_validation,
    "uniform": by_uniform,
    "calibrated": by_uniform,  # and what each has shown on held-out examples of the kind: `TeacherCache.trust.groups`
    "gate": by_uniform,  # and `TeacherCache.trust.gate` for each candidate
}


def by_prior(confidence: Tensor, prior: Tensor) -> Tensor:
    """Confidence [T, B] times a factor of each teacher, [T] or [T, B], normalised again over those that have any."""
    prior = prior.to(confidence)
    weighed = confidence * (prior[:, None] if prior.dim() == 1 else prior)
    total = weighed.sum(0)  # [B]
    return torch.where(total > 0, _divide(weighed, total), confidence)


def mark_none(soft: Tensor, covered: Tensor, mask: Tensor) -> Tensor:
    """Every teacher that covers the candidate is consistent."""
    return covered & mask if covered.dtype is torch.bool else covered.clone()


def mark_std(soft: Tensor, covered: Tensor, mask: Tensor) -> Tensor:
    """Within one population standard deviation of the teachers' mean, inclusive; one or two teachers always are."""
    soft, say = _with_say(soft, covered, mask)
    difference, number = _from_mean(soft, say)
    deviation = (difference**2).sum(0).div_(number.clamp(min=1)).sqrt_()  # [B, C]
    return difference.abs_().le_(deviation.add_(TOLERANCE)).mul_(say).to(covered.dtype)


def mark_outlier(soft: Tensor, covered: Tensor, mask: Tensor) -> Tensor:
    """Not the farthest from the others' mean; a tie marks all, so one, two or equal teachers always are."""
    soft, say = _with_say(soft, covered, mask)
    difference, number = _from_mean(soft, say)
    distance = difference.abs_()  # [T, B, C]; times n / (n - 1): to the mean of the n - 1 others
    farthest = distance.ge_(distance.amax(0).sub_(TOLERANCE)).mul_(say)  # [T, B, C]
    alone = (farthest.sum(0) == 1) & (number > 1)  # [B, C]
    return (say - farthest.mul_(alone)).to(covered.dtype)


def mark_vote(soft: Tensor, covered: Tensor, mask: Tensor) -> Tensor:
    """With the majority on "my score >= the teachers' mean for this candidate"; a tie marks all."""
    soft, say = _with_say(soft, covered, mask)
    difference, _ = _from_mean(soft, say)
    return _with_majority(difference.ge_(-TOLERANCE), say).to(covered.dtype)


def mark_vote_uniform(soft: Tensor, covered: Tensor, mask: Tensor) -> Tensor:
    """With the majority on "my score >= 1 / number of the example's candidates"; a tie marks all."""
    soft, say = _with_say(soft, covered, mask)
    number = mask.sum(-1, keepdim=True).to(soft)  # [B, 1]
    return _with_majority((soft * number).ge_(1 - TOLERANCE), say).to(covered.dtype)


# (soft [T, B, C], covered [T, B, C], mask [B, C]) -> marks [T, B, C], bool or 1.0 and 0.0 as `covered` is: True for a
# teacher that agrees with the other teachers that cover this candidate, False where it does not cover or mask is False.
CONSISTENCY: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": mark_none,
    "std": mark_std,
    "outlier": mark_outlier,
    "vote": mark_vote,
    "vote_uniform": mark_vote_uniform,
}


def fuse(
    probabilities: Tensor,
    confidence: Tensor,
    consistent: Tensor,
    damping: float,
    covered: Tensor,
    mask: Tensor,
    sharpness: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the teachers ("weights w.r.t <user,item,teacher>", arXiv 2401.00797, figure), or a product.

    Weight = confidence, [T, B] or [T, B, C], * (1 if consistent [T, B, C], else damping in [0, 1]), renormalised over
    the teachers that cover the candidate (covered [T, B, C]). Nothing is left of it where damping is 0 and those that
    agree have no confidence. There confidence alone decides, or equal weights if that is 0 too. To leave the candidate
    out would claim probability 0, the strongest possible statement, where the teachers merely disagree.

    With a `sharpness`, a number or [B, 1 or C], the target is the product over the teachers of probabilities **
    (sharpness * weights) instead (a logarithmic opinion pool; our choice). A sum puts first what one teacher is sure
    of, a product what all find likely.

    Returns:
        target [B, C], the sum of weights * probabilities [T, B, C], or the product, renormalised over C; all 0 in an
        example that no teacher covers.
        weights [T, B, C], which sum to 1 over T; all 0 where no teacher covers the candidate or mask [B, C] is False.

    Raises:
        ValueError: damping is out of range, or the shapes do not fit.
    """
    shape = probabilities.shape
    wanted = (shape if confidence.dim() == 3 else shape[:2], shape, shape, shape[1:])
    if (confidence.shape, consistent.shape, covered.shape, mask.shape) != wanted:
        got = [list(tensor.shape) for tensor in (probabilities, confidence, consistent, covered, mask)]
        raise ValueError(f"Need [T, B, C], confidence [T, B], [T, B, C], [T, B, C], mask [B, C], got {got}.")
    if not 0 <= damping <= 1:
        raise ValueError(f"damping must be in [0, 1], got {damping}.")
    with torch.autocast(probabilities.device.type, enabled=False):
        soft, say = _with_say(probabilities, covered, mask)
        confidence = _upcast(confidence).view(*confidence.shape, *[1] * (3 - confidence.dim()))  # [T, B, 1 or C]
        agrees = (consistent * say).to(torch.promote_types(soft.dtype, confidence.dtype))  # [T, B, C]
        weights = agrees.mul_(1 - damping).add_(say, alpha=damping).mul_(confidence)  # [T, B, C]
        total = weights.sum(0)  # [B, C]
        if not total.is_cuda and torch.equal(total.sign(), say.amax(0)):  # a GPU would have to wait for the answer
            weights.div_(_or_one(total))
        else:  # somewhere nothing is left
            weights = _over_teachers(torch.where(total > 0, weights, confidence), say.bool())
        if sharpness is None:
            target = (weights * soft).sum(0)  # [B, C]
        else:
            logs = soft.clamp(min=torch.finfo(soft.dtype).tiny).log_().mul_(weights)  # [T, B, C]
            target = logs.sum(0).mul_(sharpness)  # [B, C]
            target.sub_(target.amax(-1, keepdim=True)).exp_().mul_(say.amax(0))
        return target.div_(_or_one(target.sum(-1, keepdim=True))), weights


def agreement(soft: Tensor, covered: Tensor) -> Tensor:
    """What all teachers that cover an example have in common: the sum over C of their least probability (our choice).

    Args:
        soft: [T, B, C] soft targets.
        covered: [T, B] which teachers cover the example.

    Returns:
        [B] in [0, 1]: 1 where they say the same (one alone always does), 0 where each candidate is ruled out by one of
        them, and 0 where no teacher covers the example.
    """
    least = soft.masked_fill(~covered.unsqueeze(-1), 1).amin(0)  # [B, C]
    return torch.where(covered.any(0), least.sum(-1), 0)


def _upcast(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _divide(values: Tensor, total: Tensor) -> Tensor:
    """values / total; where the total is 0 its parts are 0 too, and stay."""
    return values / total.masked_fill(total == 0, 1)


def _over_teachers(raw: Tensor, say: Tensor) -> Tensor:
    """raw [T, ...] >= 0 normalised over the teachers with a say [T, ...]; equal weights if all have 0."""
    raw = raw.masked_fill(~say, 0)
    raw = torch.where(raw.sum(0) > 0, raw, say.to(raw))
    return _divide(raw, raw.sum(0))


def _has_say(soft: Tensor, covered: Tensor) -> Tensor:
    return covered & (soft.amax(-1) > 0)  # [T, B]


def _of_true_item(soft: Tensor, columns: Tensor) -> Tensor:
    return _upcast(soft[:, torch.arange(len(columns), device=columns.device), columns])  # [T, B]


def _with_say(soft: Tensor, covered: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[T, B, C] twice: the scores, 0 where the teacher has no say, and who has one, 1.0 or 0.0. Not always new."""
    soft = _upcast(soft)
    if covered.dtype is torch.bool:
        covered = covered & mask
        soft = torch.where(covered, soft, 0)
    return soft, covered.to(soft)


def _or_one(total: Tensor) -> Tensor:
    """total with 1 in place of 0: to divide by it leaves the parts of a total of 0, which are 0, as they are."""
    return total.clone().eq_(0).add_(total)


def _from_mean(soft: Tensor, say: Tensor) -> tuple[Tensor, Tensor]:
    """Score less the mean of the teachers with a say, in units of the largest, 0 elsewhere, and how many have a say.

    Both arguments as `_with_say` gives them; [T, B, C], new, and [B, C].
    """
    number = say.sum(0)  # [B, C]
    soft = soft / _or_one(soft.amax(0))  # else the squares of small probabilities would underflow
    return soft.sub_(soft.sum(0).div_(number.clamp(min=1))).mul_(say), number


def _with_majority(yes: Tensor, say: Tensor) -> Tensor:
    """[T, B, C]: 1 where a teacher's vote, 1 or 0, is that of most teachers with a say. In place."""
    ayes = yes.mul_(say).sum(0)  # [B, C]
    noes = say.sum(0).sub_(ayes)
    for_yes, for_no = (ayes >= noes).to(say), (noes >= ayes).to(say)
    return yes.mul_(for_yes - for_no).add_(for_no).mul_(say)
