"""From the scores of several teachers to one target per row: soft targets, confidence, consistency, fusion.

Confidence says how far a teacher is trusted on a row, consistency whether it agrees with the other teachers
on one candidate; `fuse` makes both a weight per (row, candidate, teacher), as the figure of arXiv 2401.00797
draws it. That gives no formula, so every rule here is our choice unless it names a source.

When to use which. Confidence: `probability` follows the paper's idea, `label_ce` is CA-MKD's milder form of
it, `entropy` needs no label, `validation` trusts a teacher equally on all rows, `uniform` is a plain average.
Consistency: `std`, `outlier`, `vote`, `vote_uniform` all give the figure's nine marks; `none` is without.

Axes: T teachers, B batch rows, C candidates. `mask` [B, C]: what counts as a candidate. `known` [T, B, C], or
[T, B] of a row: where a teacher has knowledge at all; the unknown never gets weight. Float64 stays float64,
all else is computed in float32, under autocast too.

Bools are slow on a CPU, so `mask`, `known` and marks may instead all be 1.0 or 0.0, provided that `known` is 0
where `mask` is and that soft targets are 0 where `known` is. Only what is made here is changed in place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 1e-6  # of the largest score that is compared: rounding alone never makes two teachers differ


def soft_targets(scores: Tensor, temperature: Tensor, mask: Tensor) -> Tensor:
    """Softmax of each teacher's scores over a row's candidates ("Normalized Scores" in arXiv 2401.00797).

    Args:
        scores: [T, B, C] raw scores; NaN = this teacher does not know this candidate, which counts as masked.
        temperature: [T], > 0, each teacher's own training temperature.
        mask: [B, C], bool or 1.0 and 0.0.

    Returns:
        [T, B, C], 0 where masked, else summing to 1 over C; a row with no score above -inf is 0 throughout.
        ValueError if the shapes do not fit.
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


def by_probability(soft: Tensor, columns: Tensor, known: Tensor, validation: Tensor | None = None) -> Tensor:
    """Probability that the teacher gives the row's true item, normalised over the teachers."""
    return _over_teachers(_of_true_item(soft, columns), _has_say(soft, known))


def by_entropy(soft: Tensor, columns: Tensor, known: Tensor, validation: Tensor | None = None) -> Tensor:
    """1 - H_k / sum_j H_j, normalised; H = entropy of the soft targets (EBKD, Kwon et al., ICASSP 2020).

    Of a teacher whose soft targets sum to the share of the candidates that it knows, H is that of all candidates if the
    others were like these (our choice).
    """
    say = _has_say(soft, known)  # [T, B]
    soft = _upcast(soft)
    logs = soft.clamp(min=torch.finfo(soft.dtype).tiny).log_()  # [T, B, C]; torch.xlogy takes several times as long
    entropy = -logs.mul_(soft).sum(-1).clamp(max=0)  # [T, B]
    entropy = _divide(entropy, soft.sum(-1)).masked_fill(~say, 0)
    return _over_teachers(1 - _divide(entropy, entropy.sum(0)), say)


def by_label_ce(soft: Tensor, columns: Tensor, known: Tensor, validation: Tensor | None = None) -> Tensor:
    """1 - softmax_k(CE of the true item), normalised (CA-MKD, arXiv 2201.00007; there at temperature 1)."""
    probability, say = _of_true_item(soft, columns), _has_say(soft, known)  # [T, B]
    cross_entropy = -probability.clamp(min=torch.finfo(probability.dtype).tiny).log()  # [T, B]
    return _over_teachers(1 - cross_entropy.masked_fill(~say, -torch.inf).softmax(0), say)


def by_validation(soft: Tensor, columns: Tensor, known: Tensor, validation: Tensor | None = None) -> Tensor:
    """A given number >= 0 per teacher, say its validation NDCG, normalised; ValueError if it is missing."""
    if validation is None or validation.shape != soft.shape[:1] or not bool((validation >= 0).all()):
        raise ValueError(f"validation must be {len(soft)} numbers >= 0, one per teacher, got {validation}.")
    return _over_teachers(validation.to(_upcast(soft)).unsqueeze(1).expand_as(known), _has_say(soft, known))


def by_uniform(soft: Tensor, columns: Tensor, known: Tensor, validation: Tensor | None = None) -> Tensor:
    """The same weight for every known teacher."""
    return _over_teachers(torch.ones_like(_upcast(soft[..., 0])), _has_say(soft, known))


# (soft [T, B, C], columns [B] of the true items, known [T, B], validation [T] or None) -> weights [T, B]:
# >= 0, 0 for teachers unknown in the row (or with soft targets of 0 throughout), sum 1 over the others, which
# weigh the same where each of them scores 0. All 0 where no teacher is known.
CONFIDENCE: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "probability": by_probability,
    "entropy": by_entropy,
    "label_ce": by_label_ce,
    "validation": by_validation,
    "uniform": by_uniform,
}


def mark_none(soft: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """Every known teacher is consistent."""
    return known & mask if known.dtype is torch.bool else known.clone()


def mark_std(soft: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """Within one population standard deviation of the teachers' mean, inclusive; one or two always are."""
    soft, say = _with_say(soft, known, mask)
    difference, number = _from_mean(soft, say)
    deviation = (difference**2).sum(0).div_(number.clamp(min=1)).sqrt_()  # [B, C]
    return difference.abs_().le_(deviation.add_(TOLERANCE)).mul_(say).to(known.dtype)


def mark_outlier(soft: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """Not the farthest from the others' mean; a tie marks all, so one, two or equal teachers always are."""
    soft, say = _with_say(soft, known, mask)
    difference, number = _from_mean(soft, say)
    distance = difference.abs_()  # [T, B, C]; times n / (n - 1): to the mean of the n - 1 others
    farthest = distance.ge_(distance.amax(0).sub_(TOLERANCE)).mul_(say)  # [T, B, C]
    alone = (farthest.sum(0) == 1) & (number > 1)  # [B, C]
    return (say - farthest.mul_(alone)).to(known.dtype)


def mark_vote(soft: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """With the majority on "my score >= the teachers' mean of this (row, candidate)"; a tie marks all."""
    soft, say = _with_say(soft, known, mask)
    difference, _ = _from_mean(soft, say)
    return _with_majority(difference.ge_(-TOLERANCE), say).to(known.dtype)


def mark_vote_uniform(soft: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    """With the majority on "my score >= 1 / number of the row's candidates"; a tie marks all."""
    soft, say = _with_say(soft, known, mask)
    number = mask.sum(-1, keepdim=True).to(soft)  # [B, 1]
    return _with_majority((soft * number).ge_(1 - TOLERANCE), say).to(known.dtype)


# (soft [T, B, C], known [T, B, C], mask [B, C]) -> marks [T, B, C], bool or 1.0 and 0.0 as known is: True for a
# teacher who agrees with the other known teachers of this candidate, False for an unknown teacher and for a masked
# candidate.
CONSISTENCY: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "none": mark_none,
    "std": mark_std,
    "outlier": mark_outlier,
    "vote": mark_vote,
    "vote_uniform": mark_vote_uniform,
}


def fuse(
    probabilities: Tensor, confidence: Tensor, consistent: Tensor, damping: float, known: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted sum of the teachers ("weights w.r.t <user,item,teacher>", arXiv 2401.00797, figure).

    Weight = confidence [T, B] * (1 if consistent [T, B, C], else damping in [0, 1]), renormalised over the
    teachers known [T, B, C]. Where nothing is left of it (damping 0, and those who agree have no confidence)
    confidence alone decides, or equal weights if that is 0 too: leaving the candidate out would claim
    probability 0, the strongest possible statement, where the teachers merely disagree.

    Returns:
        target [B, C], the sum of weights * probabilities [T, B, C] renormalised over C (all 0 in a row where
        nothing is known), and weights [T, B, C], which sum to 1 over T (all 0 where no teacher knows the
        candidate or mask [B, C] is False). ValueError for a wrong damping or shape.
    """
    shape = probabilities.shape
    if (confidence.shape, consistent.shape, known.shape, mask.shape) != (shape[:2], shape, shape, shape[1:]):
        got = [list(tensor.shape) for tensor in (probabilities, confidence, consistent, known, mask)]
        raise ValueError(f"Need [T, B, C], confidence [T, B], [T, B, C], [T, B, C], mask [B, C], got {got}.")
    if not 0 <= damping <= 1:
        raise ValueError(f"damping must be in [0, 1], got {damping}.")
    with torch.autocast(probabilities.device.type, enabled=False):
        soft, say = _with_say(probabilities, known, mask)
        confidence = _upcast(confidence).unsqueeze(-1)  # [T, B, 1]
        agrees = (consistent * say).to(torch.promote_types(soft.dtype, confidence.dtype))  # [T, B, C]
        weights = agrees.mul_(1 - damping).add_(say, alpha=damping).mul_(confidence)  # [T, B, C]
        total = weights.sum(0)  # [B, C]
        if torch.equal(total.sign(), say.amax(0)):
            weights.div_(_or_one(total))
        else:  # somewhere nothing is left
            weights = _over_teachers(torch.where(total > 0, weights, confidence), say.bool())
        target = (weights * soft).sum(0)  # [B, C]
        return target.div_(_or_one(target.sum(-1, keepdim=True))), weights


def agreement(soft: Tensor, known: Tensor) -> Tensor:
    """What all teachers that know a row have in common: the sum over candidates of the least probability (our choice).

    Args:
        soft: [T, B, C] soft targets.
        known: [T, B] which teachers know the row.

    Returns:
        [B] in [0, 1]: 1 where they say the same (one alone always does), 0 where none shares a candidate with all
        others, and 0 where no teacher knows the row.
    """
    least = soft.masked_fill(~known.unsqueeze(-1), 1).amin(0)  # [B, C]
    return torch.where(known.any(0), least.sum(-1), 0)


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


def _has_say(soft: Tensor, known: Tensor) -> Tensor:
    return known & (soft.amax(-1) > 0)  # [T, B]


def _of_true_item(soft: Tensor, columns: Tensor) -> Tensor:
    return _upcast(soft[:, torch.arange(len(columns), device=columns.device), columns])  # [T, B]


def _with_say(soft: Tensor, known: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """[T, B, C] twice: the scores, 0 where the teacher has no say, and who has one, 1.0 or 0.0. Not always new."""
    soft = _upcast(soft)
    if known.dtype is torch.bool:
        known = known & mask
        soft = torch.where(known, soft, 0)
    return soft, known.to(soft)


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
