"""How each teacher ranks the holdout's next items, before a student starts.

The holdout is a few training examples whose targets no teacher has learnt from. Items of an example's history are left
out. What follows from it for the weights of the teachers is in `trust`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.storage import store
from recbole_prmkd.teacher_cache.gate import PROFILE, profile
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.unseen import ndcg_at_10, without_history

VERSION = "1.2"  # raise it when the same teacher and holdout give other numbers
SCORES = 1 << 24  # ranked at a time, at most: 64 MB; memory that is kept for later (`memory`) breaks up large blocks
_EXAMPLES = 2000  # of the holdout, at most
_STORED = 1 << 24  # log-probabilities of a teacher that are stored, at most: 32 MB
_ARRAYS = ("log_likelihood", "log_probability", "profile", "items")


@dataclass(frozen=True)
class Ranked:
    """The holdout's targets among the items outside each history.

    ndcg: NDCG@10. log_likelihood: [H] of the targets in the teacher's soft targets over all items; of an example that
    it does not cover, that of a guess. log_probability: [H, 1 + S] float16 of the target and of S items, the same for
    all teachers, -inf for the target itself among them, for the history, and for what the teacher does not cover.
    profile: [H, P] of its scores of all items (`teacher_cache.gate`). items: [S] whose they are, canonical ids.
    """

    ndcg: float
    log_likelihood: Tensor
    log_probability: Tensor = field(default_factory=lambda: torch.zeros(0, 1, dtype=torch.float16))
    profile: Tensor = field(default_factory=lambda: torch.zeros(0, PROFILE))
    items: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))


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
        arrays = {name: getattr(ranked, name).numpy() for name in _ARRAYS}
        stored = store.save(root, f"holdout-{kind}", identity, arrays, {"ndcg": ranked.ndcg})
    return Ranked(stored.notes["ndcg"], *(torch.from_numpy(np.array(stored.array(name))) for name in _ARRAYS))


@torch.no_grad()
def rank(model: Teacher, config: Config, data: TeacherData, order: Tensor | None = None) -> Ranked:
    """A frozen teacher on the holdout; order: [n_items] of each item that whose scores it gets (a control)."""
    examples = sample(data)
    if len(examples) == 0:
        return Ranked(0.0, torch.zeros(0))
    dataset, items = data.dataset(config, examples), model.encode_items()
    covered = model.covered_items()
    order = torch.arange(len(covered)) if order is None else order
    ranked, sampled = [], items_beside_target(len(examples), len(covered))
    for index in torch.arange(len(examples)).split(min(256, max(1, SCORES // len(covered)))):
        batch = dataset[index].to(config["device"])
        scores = model.scores(model.encode_batch(batch, items), items).float().cpu()  # [B, n_items]
        scores = scores.masked_fill(~covered, -torch.inf).nan_to_num(nan=-torch.inf)
        ranked.append(_ranked(scores[:, order], model.temperature, examples, index, sampled))
    ndcg, likelihood, probability, profiles = map(torch.cat, zip(*ranked, strict=True))
    return Ranked(float(ndcg.mean()), likelihood, probability, profiles, sampled)


def popularity(data: TeacherData) -> Ranked:
    """The number of a training item's interactions as its score, the least that a teacher must beat."""
    examples, n_items = sample(data), len(data.item_tokens) + 1
    if len(examples) == 0:
        return Ranked(0.0, torch.zeros(0))
    count = torch.bincount(data.fit.targets, minlength=n_items).float()
    count[0] = 0
    scores = (count + 1e-3).log()  # [n_items]
    sampled = items_beside_target(len(examples), n_items)
    batches = torch.arange(len(examples)).split(max(1, SCORES // n_items))
    ranked = [_ranked(scores.expand(len(index), -1), 1.0, examples, index, sampled) for index in batches]
    ndcg, likelihood, probability, profiles = map(torch.cat, zip(*ranked, strict=True))
    return Ranked(float(ndcg.mean()), likelihood, probability, profiles, sampled)


def items_beside_target(examples: int, n_items: int) -> Tensor:
    """S items whose probabilities are stored for each example: all, or as many as have room."""
    items = 1 + torch.randperm(n_items - 1, generator=torch.Generator().manual_seed(0))
    return items[: max(1, _STORED // max(1, examples))].sort().values


def _ranked(
    scores: Tensor, temperature: float, examples: Examples, index: Tensor, sampled: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """NDCG@10 [B] and log-likelihood [B] of these examples' targets; log-probabilities of these and S items;
    the profile [B, P]."""
    item_seq, _ = examples.histories(index, int(examples.lengths.max()))
    targets = examples.targets[index]
    scores = without_history(scores, item_seq, targets)
    probability = (scores / temperature).log_softmax(1)  # [B, n_items]
    own = probability.gather(1, targets[:, None])  # [B, 1]
    guess = -math.log(scores.shape[1])  # where the scores rule the target out
    likelihood = own.squeeze(1).nan_to_num(nan=guess, neginf=guess)
    others = probability.scatter(1, targets[:, None], -torch.inf)[:, sampled].nan_to_num(nan=-torch.inf)
    stored = torch.cat([own.nan_to_num(nan=-torch.inf), others], 1).half()
    return ndcg_at_10(scores, targets), likelihood, stored, profile(scores / temperature)
