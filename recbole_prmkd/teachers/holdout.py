"""What the teachers are worth before a student starts: how they rank the holdout's next items, alone and together.

The holdout is a few training examples whose targets no teacher has learnt from. Items of an example's history are left
out. The weights of the teachers in a mixture of their soft targets are those under which the holdout's targets are most
likely (EM; our choice). A teacher that adds nothing to the others gets almost none, whatever it says.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.storage import store
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.unseen import ndcg_at_10, without_history

USELESS = 0.05  # of the mixture: a teacher below this share adds nothing
VERSION = "1.0"  # raise it when the same teacher and holdout give other numbers
SCORES = 1 << 26  # ranked at a time, at most: 256 MB
_ROUNDS = 100  # of EM
_EXAMPLES = 2000  # of the holdout, at most
_FEW = 100  # of the holdout


@dataclass(frozen=True)
class Ranked:
    """The holdout's targets among the items outside each history.

    ndcg: NDCG@10. log_likelihood: [H] of the targets in the teacher's soft targets over all items; of an example that
    it does not cover, that of a guess.
    """

    ndcg: float
    log_likelihood: Tensor


def sample(data: TeacherData) -> Examples:
    """The holdout, or `_EXAMPLES` of it."""
    number = len(data.holdout)
    return data.holdout.select(torch.linspace(0, number - 1, min(number, _EXAMPLES)).long())


def rank_or_load(
    model: Teacher,
    config: Config,
    data: TeacherData,
    root: Path,
    kind: str,
    digest: str,
    order: Tensor | None = None,
) -> Ranked:
    """A frozen teacher on the holdout, stored beside its weights.

    digest: of the teacher; order: as `rank` has it.
    """
    code = f"{model.code_version} holdout {VERSION}"
    identity = store.identity(code=code, teacher=digest, holdout=data.holdout.digest())
    if order is not None:
        identity["order"] = store.digest([order])
    stored = store.find(root, f"holdout-{kind}", identity)
    if stored is None:
        store.check_room(root)
        ranked = rank(model, config, data, order)
        arrays = {"log_likelihood": ranked.log_likelihood.numpy()}
        stored = store.save(root, f"holdout-{kind}", identity, arrays, {"ndcg": ranked.ndcg})
    return Ranked(stored.notes["ndcg"], torch.from_numpy(np.array(stored.array("log_likelihood"))))


@torch.no_grad()
def rank(model: Teacher, config: Config, data: TeacherData, order: Tensor | None = None) -> Ranked:
    """A frozen teacher on the holdout; order: [n_items] of each item that whose scores it gets (a control)."""
    examples = sample(data)
    if len(examples) == 0:
        return Ranked(0.0, torch.zeros(0))
    dataset, items = data.dataset(config, examples), model.encode_items()
    covered = model.covered_items()
    order = torch.arange(len(covered)) if order is None else order
    ranked = []
    for index in torch.arange(len(examples)).split(min(256, max(1, SCORES // 4 // len(covered)))):
        batch = dataset[index].to(config["device"])
        scores = model.scores(model.encode_batch(batch, items), items).float().cpu()  # [B, n_items]
        scores = scores.masked_fill(~covered, -torch.inf).nan_to_num(nan=-torch.inf)
        ranked.append(_ranked(scores[:, order], model.temperature, examples, index))
    ndcg, likelihood = map(torch.cat, zip(*ranked, strict=True))
    return Ranked(float(ndcg.mean()), likelihood)


def popularity(data: TeacherData) -> Ranked:
    """The number of a training item's interactions as its score, the least that a teacher must beat."""
    examples, n_items = sample(data), len(data.item_tokens) + 1
    if len(examples) == 0:
        return Ranked(0.0, torch.zeros(0))
    count = torch.bincount(data.fit.targets, minlength=n_items).float()
    count[0] = 0
    scores = (count + 1e-3).log()  # [n_items]
    batches = torch.arange(len(examples)).split(max(1, SCORES // n_items))
    ranked = [_ranked(scores.expand(len(index), -1), 1.0, examples, index) for index in batches]
    ndcg, likelihood = map(torch.cat, zip(*ranked, strict=True))
    return Ranked(float(ndcg.mean()), likelihood)


def _ranked(scores: Tensor, temperature: float, examples: Examples, index: Tensor) -> tuple[Tensor, Tensor]:
    """NDCG@10 and log-likelihood of the targets of these examples, [B] both."""
    item_seq, _ = examples.histories(index, int(examples.lengths.max()))
    targets = examples.targets[index]
    scores = without_history(scores, item_seq, targets)
    likelihood = (scores / temperature).log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    guess = -math.log(scores.shape[1])  # where the scores rule the target out
    return ndcg_at_10(scores, targets), likelihood.nan_to_num(nan=guess, neginf=guess)


def mixture(likelihoods: Tensor) -> Tensor:
    """The shares [T] of the mixture under which the targets are most likely.

    Args:
        likelihoods: [T, H] logarithms of each teacher's probability of each target.
    """
    number = len(likelihoods)
    share = torch.full((number,), 1 / number, dtype=torch.float64)
    if likelihoods.shape[1] == 0:
        return share.float()
    logs = likelihoods.double()
    for _ in range(_ROUNDS):
        responsible = (logs + share.clamp(min=1e-12).log()[:, None]).softmax(0)  # [T, H]
        share = responsible.mean(1)
    return share.float()


def kept(names: Sequence[str], ranked: Mapping[str, Ranked], least: Ranked, check: str) -> dict[str, float]:
    """The teachers that teach, by `kd_teacher_check`, and the factor on each one's confidence: 1, or its share.

    Args:
        least: popularity, which takes part in the mixture: a teacher that knows no more than it gets no share.
    """
    shares = dict(zip(names, _shares(names, ranked, least), strict=True))
    if check == "drop":
        best = max(shares, key=shares.__getitem__)
        names = [name for name in names if shares[name] >= USELESS or name == best]
    if check != "weigh" or len(least.log_likelihood) == 0:
        return dict.fromkeys(names, 1.0)
    return {name: shares[name] for name in names}


def _shares(names: Sequence[str], ranked: Mapping[str, Ranked], least: Ranked) -> list[float]:
    parts = [ranked[name].log_likelihood for name in names]
    return mixture(torch.stack([*parts, least.log_likelihood])).tolist()[:-1]


_THEN = {
    "warn": "leave it out of kd_teachers, or let --kd_teacher_check=weigh decide",
    "weigh": "its weight is small",
    "drop": "it is left out",
}


def report(names: Sequence[str], ranked: Mapping[str, Ranked], least: Ranked, check: str) -> None:
    """A table of the teachers beside popularity in the log, and a warning for each that is of no use."""
    number = len(least.log_likelihood)
    if number == 0:
        getLogger().info("There is no holdout to rank the teachers on: none is left out or weighed.")
        return
    shares = _shares(names, ranked, least)
    lines = [f"{'':<20}  NDCG@10  log-likelihood  share"]
    for name, share in zip(names, shares, strict=True):
        lines.append(f"{name:<20}  {ranked[name].ndcg:7.4f}  {_mean(ranked[name]):14.3f}  {share:5.2f}")
    lines.append(f"{'popularity':<20}  {least.ndcg:7.4f}  {_mean(least):14.3f}  {max(0.0, 1 - sum(shares)):5.2f}")
    few = f" (fewer than {_FEW}: chance decides much)" if number < _FEW else ""
    getLogger().info(f"Teachers on {number} held-out training examples{few}:\n" + "\n".join(lines))
    for name, share in zip(names, shares, strict=True):
        if ranked[name].ndcg < least.ndcg:
            fault = f"ranks the holdout worse than popularity ({ranked[name].ndcg:.4f} to {least.ndcg:.4f})"
        elif share < USELESS:
            fault = f"adds nothing to the others and to popularity (share {share:.2f})"
        else:
            continue
        getLogger().warning(f"{name} {fault}: {_THEN[check]}.")


def _mean(ranked: Ranked) -> float:
    return float(ranked.log_likelihood.mean())
