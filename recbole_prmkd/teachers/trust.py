"""What the teachers deserve, by how they rank the holdout: shares of a sum, or exponents of a product (`kd_fusion`).

    sum      p = share_0 x popularity + share_1 p_1 + ... + share_T p_T
    product  p = p_1 ** e_1 x ... x p_T ** e_T, normalised over the items

Shares (by EM) and exponents (a conditional logit) are those under which the holdout's targets are most likely. No
teacher has learnt from the holdout. One that adds nothing to the others gets almost no share or exponent. Our choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger

import numpy as np
import torch
from recbole.config import Config
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.recbole_host.keys import WITHOUT_TEACHERS
from recbole_prmkd.teacher_cache.scores import Groups, Trust
from recbole_prmkd.teachers import gate_fit
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.holdout import Ranked, popularity, sample
from recbole_prmkd.teachers.unseen import ndcg_at_10

USELESS = 0.05  # a teacher below this share or exponent adds nothing
PRODUCT = "product"
_ROUNDS = 100  # of EM
_FEW = 100  # of the holdout
_PULL = 20.0
_FIRST = 20  # items of a teacher: those that may come among the first 10 of a product
_FIT = 1 << 23  # log-probabilities of a teacher that exponents are found on, at most


@dataclass(frozen=True)
class Found:
    """What the holdout says of the teachers, by name; shares: of the mixture with popularity, their sum at most 1.

    trust: of all of them, as `weigh` has it.
    """

    shares: dict[str, float]
    trust: Trust


def find(names: Sequence[str], ranked: Mapping[str, Ranked], least: Ranked, fusion: str) -> Found:
    """Weigh the teachers.

    Args:
        least: popularity. It takes part in the mixture, so that teachers who know little more than it teach little.
            Teachers who together rank no better than it do not teach.
    """
    shares = dict(zip(names, shares_of(names, ranked, least), strict=True))
    if len(least.log_likelihood) == 0:
        return Found(shares, Trust([1.0] * len(names)))
    teachers, strength = [ranked[name] for name in names], min(1.0, sum(shares.values()))
    powers = exponents(teachers) if fusion == PRODUCT else list(shares.values())
    trust = Trust(powers, strength, sum(powers)) if fusion == PRODUCT else Trust(powers, strength)
    if together(teachers, trust, fusion) <= together([least], Trust([1.0]), fusion):
        trust = replace(trust, strength=0.0)  # a share alone may come from smoothing what popularity says
    return Found(shares, trust)


def trusted(found: Found, check: str) -> tuple[list[str], Trust]:
    """The teachers that teach by `kd_teacher_check`, and how much each and all of them count."""
    shares, names = found.shares, list(found.shares)
    if check == "weigh":
        return names, found.trust
    if check == "drop":
        best = max(shares, key=shares.__getitem__)
        names = [name for name in names if shares[name] >= USELESS or name == best]
    return names, Trust([1.0] * len(names))


def mixture(likelihoods: Tensor, near: Sequence[float] | None = None) -> Tensor:
    """The shares [T] of the mixture under which the targets are most likely.

    Args:
        likelihoods: [T, H] logarithms of each teacher's probability of each target.
        near: other shares that few examples leave it close to, as `_PULL` of them would.
    """
    number = len(likelihoods)
    share = torch.full((number,), 1 / number, dtype=torch.float64) if near is None else torch.tensor(near).double()
    if likelihoods.shape[1] == 0:
        return share.float()
    logs = likelihoods.double()
    for _ in range(_ROUNDS):
        responsible = (logs + share.clamp(min=1e-12).log()[:, None]).softmax(0)  # [T, H]
        total, pull = responsible.sum(1), 0.0 if near is None else _PULL
        if near is not None:
            total = total + pull * torch.tensor(near).double()
        share = total / (likelihoods.shape[1] + pull)
    return share.float()


def shares_of(names: Sequence[str], ranked: Mapping[str, Ranked], least: Ranked) -> list[float]:
    """Each teacher's share of the mixture with popularity."""
    parts = [ranked[name].log_likelihood for name in names]
    return mixture(torch.stack([*parts, least.log_likelihood])).tolist()[:-1]


def exponents(teachers: Sequence[Ranked], near: Sequence[float] | None = None) -> list[float]:
    """Exponents >= 0 of the product under which the targets are most likely.

    near: other exponents that few examples leave it close to, as `_PULL` of them would.

    Only what decides the first places counts: the items that a teacher has among its first `_FIRST`, and the examples
    whose target is one of these. Over all items a smooth teacher gets too much, for the targets that nobody ranks.
    """
    logs = _first_places(_filled(teachers, _FIT), 1 if near is not None else _FEW)  # [T, H', 1 + S]

    def surprise(powers: np.ndarray) -> tuple[float, np.ndarray]:
        power = torch.from_numpy(powers).to(logs).requires_grad_()
        product = (power[:, None, None] * logs).sum(0)  # [H', 1 + S]
        loss = functional.cross_entropy(product, torch.zeros(len(product), dtype=torch.int64))
        if near is not None:
            loss = loss + _PULL / len(product) * (power - power.new_tensor(near)).square().sum()
        loss.backward()
        assert power.grad is not None
        return loss.item(), power.grad.double().numpy()

    start = np.full(len(teachers), 1 / len(teachers)) if near is None else np.asarray(near, dtype=np.float64)
    found = minimize(surprise, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(teachers))
    return [float(power) for power in found.x]


def _first_places(logs: Tensor, few: int) -> Tensor:
    """Log-probabilities [T, H', 1 + S] of the examples and items that count; all where too few examples do."""
    first = torch.zeros(logs.shape[1:], dtype=torch.bool)
    for of_teacher in logs:
        first.scatter_(1, of_teacher.topk(min(_FIRST, logs.shape[2]), dim=1).indices, True)  # [H, 1 + S]
    reached = first[:, 0]
    if int(reached.sum()) < few:
        return logs
    return logs[:, reached].masked_fill(~first[reached], torch.finfo(torch.float16).min)


def together(teachers: Sequence[Ranked], trust: Trust, fusion: str) -> float:
    """NDCG@10 of the fused teachers among the stored items."""
    logs, prior = _filled(teachers), torch.tensor(trust.priors)[:, None, None]
    if fusion == PRODUCT:
        share = prior / prior.sum().clamp(min=1e-9)
        fused = trust.sharpness * (share * logs).sum(0)  # [H, 1 + S]
    else:
        fused = torch.logsumexp(logs + prior.clamp(min=1e-9).log(), 0)
    return float(ndcg_at_10(fused, torch.zeros(len(fused), dtype=torch.int64)).mean())


def _filled(teachers: Sequence[Ranked], most: int | None = None) -> Tensor:
    """Log-probabilities [T, H, 1 + S]; where one teacher alone covers no item it is that teacher's mean.

    The lowest number stands for items that are no candidates. most: numbers of a teacher at most, by fewer examples.
    """
    width = teachers[0].log_probability.shape[1]
    number = len(teachers[0].log_probability) if most is None else max(1, most // width)
    logs = torch.stack([each.log_probability[:number] for each in teachers]).float()
    covered = logs.isfinite()  # [T, H, 1 + S]
    mean = logs.masked_fill(~covered, 0).sum(2, keepdim=True) / covered.sum(2, keepdim=True).clamp(min=1)
    lowest = torch.finfo(torch.float16).min
    return torch.where(covered, logs, mean).masked_fill(~covered.any(0), lowest)


_THEN = {
    "warn": "leave it out of kd_teachers, or let --kd_teacher_check=weigh decide",
    "weigh": "its weight is small",
    "drop": "it is left out",
}


def report(found: Found, ranked: Mapping[str, Ranked], least: Ranked, check: str, fusion: str) -> None:
    """A table of the teachers beside popularity in the log, and a warning for each that is of no use."""
    number, names = len(least.log_likelihood), list(found.shares)
    if number == 0:
        getLogger().info("There is no holdout to rank the teachers on: none is left out or weighed.")
        return
    shares = list(found.shares.values())
    counts, what = (found.trust.priors, "exponent") if fusion == PRODUCT else (shares, "share")
    lines = [f"{'':<20}  NDCG@10  log-likelihood  {what:>8}"]
    for name, count in zip(names, counts, strict=True):
        lines.append(f"{name:<20}  {ranked[name].ndcg:7.4f}  {_mean(ranked[name]):14.3f}  {count:8.2f}")
    rest = "" if fusion == PRODUCT else f"  {max(0.0, 1 - sum(shares)):8.2f}"
    lines.append(f"{'popularity':<20}  {least.ndcg:7.4f}  {_mean(least):14.3f}{rest}")
    few = f" (fewer than {_FEW}: chance decides much)" if number < _FEW else ""
    getLogger().info(f"Teachers on {number} held-out training examples{few}:\n" + "\n".join(lines))
    if len(names) > 1:
        _report_together(names, ranked, found.trust, fusion)
    for name, count in zip(names, counts, strict=True):
        if ranked[name].ndcg < least.ndcg:
            fault = f"ranks the holdout worse than popularity ({ranked[name].ndcg:.4f} to {least.ndcg:.4f})"
        elif count < USELESS:
            fault = (
                f"adds nothing to the others{'' if fusion == PRODUCT else ' and to popularity'} ({what} {count:.2f})"
            )
        else:
            continue
        getLogger().warning(f"{name} {fault}: {_THEN[check]}.")


def _report_together(names: Sequence[str], ranked: Mapping[str, Ranked], trust: Trust, fusion: str) -> None:
    among = ranked[names[0]].log_probability.shape[1] - 1
    alone = {name: together([ranked[name]], Trust([1.0]), fusion) for name in names}
    best = max(alone, key=alone.__getitem__)
    fused = together([ranked[name] for name in names], trust, fusion)
    getLogger().info(
        f"Their {fusion}, weighed by what each adds, has NDCG@10 {fused:.4f} among {among} items; the best alone, "
        f"{best}, has {alone[best]:.4f}."
    )


def _mean(ranked: Ranked) -> float:
    return float(ranked.log_likelihood.mean())


def decided(
    config: Config, ranked: Mapping[str, Ranked], data: TeacherData, say: bool = False
) -> tuple[list[str], Trust]:
    """The teachers that teach, and what held-out examples say of each, by the keys of the check and of confidence.

    Args:
        ranked: the holdout by each teacher, in their order.
        say: log the table and what follows from it.
    """
    check, fusion = config["kd_teacher_check"], config["kd_fusion"]
    if config["kd"] in WITHOUT_TEACHERS:
        check = "off"  # it would say of Uniform that it knows nothing
    names, trust = list(ranked), Trust([1.0] * len(ranked))
    if check != "off":
        least = popularity(data)
        found = find(names, ranked, least, fusion)
        if say:
            report(found, ranked, least, check, fusion)
        names, trust = trusted(found, check)
    confidence = config["kd_confidence"]
    if confidence not in ("gate", "calibrated"):
        return names, trust
    if len(data.holdout) == 0:
        getLogger().warning(f"There is no holdout for kd_confidence={confidence}: all teachers count alike.")
        return names, trust
    teachers, holdout = [ranked[name] for name in names], sample(data)
    counts = torch.bincount(data.train.targets, minlength=len(data.canonical))
    if fusion == PRODUCT:
        base = trust.priors if check == "weigh" else exponents(teachers)  # the check has found them already
    else:
        base = mixture(_likelihoods(teachers)).tolist()
    if confidence == "calibrated":
        return names, replace(trust, groups=by_kind(teachers, holdout, counts, base, fusion))
    gate = gate_fit.fit(gate_fit.held_out(teachers, holdout, counts), base, fusion == PRODUCT, names, say)
    return names, replace(trust, gate=gate.to(config["device"]))


def by_kind(
    teachers: Sequence[Ranked], holdout: Examples, counts: Tensor, base: Sequence[float], fusion: str
) -> Groups:
    """Exponents or shares for each kind of example: short, middle or long history, rare, middle or popular target.

    Kinds with few examples stay near what all have.

    Args:
        counts: [n_items] training examples of each target. base: [T] exponents or shares of all examples.
    """
    lengths, popular = holdout.lengths.float(), counts[holdout.targets].float()  # [H]
    thirds = torch.tensor([1 / 3, 2 / 3])
    groups = Groups(lengths.quantile(thirds), popular.quantile(thirds), torch.tensor([]))
    kind = groups.kind(lengths, popular)  # [H]
    priors = []
    for number in range((len(thirds) + 1) ** 2):
        chosen = torch.nonzero(kind == number).squeeze(1)
        some = [_some(each, chosen) for each in teachers]
        if fusion == PRODUCT:
            priors.append(exponents(some, base) if len(chosen) else list(base))
        else:
            priors.append(mixture(_likelihoods(some), base).tolist())
    return replace(groups, priors=torch.tensor(priors, dtype=torch.float32))


def _some(ranked: Ranked, chosen: Tensor) -> Ranked:
    """Of some of the holdout's examples."""
    return replace(ranked, log_likelihood=ranked.log_likelihood[chosen], log_probability=ranked.log_probability[chosen])


def _likelihoods(teachers: Sequence[Ranked]) -> Tensor:
    return torch.stack([each.log_likelihood for each in teachers])  # [T, H]
