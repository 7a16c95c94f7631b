"""Learn a gate on the holdout, and say what it is worth there before a student starts.

It is fitted to predict each held-out target among the items that the teachers rank first, from the teachers' scores
(stacking). No teacher has learnt from these targets. Five folds of the holdout say what it ranks like on examples that
it has not seen, beside the same teachers without a gate. Our choice.
"""

from collections.abc import Sequence
from logging import getLogger
from typing import NamedTuple

import torch
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.teacher_cache.gate import Gate, features
from recbole_prmkd.teachers.holdout import Ranked
from recbole_prmkd.teachers.unseen import ndcg_at_10

FEW = 100  # of the examples whose target a teacher has in its first items; below that nothing is learnt
_FIRST = 20  # items of each teacher
_FOLDS = 5
_EPOCHS, _BATCH, _RATE, _DECAY = 30, 128, 3e-3, 1e-2


class Held(NamedTuple):
    """Held-out examples whose target is among the teachers' first items.

    logs: [T, H, C] `relative` ones, the target's in column 0. counts: [H, C] bool, each candidate once.
    inputs: [H, C, F] features. whole: H and those whose target no teacher has there.
    """

    logs: Tensor
    counts: Tensor
    inputs: Tensor
    whole: int

    def some(self, chosen: Tensor) -> "Held":
        """The examples at these positions."""
        return Held(self.logs[:, chosen], self.counts[chosen], self.inputs[chosen], self.whole)

    def logits(self, gate: Gate, nets: slice = slice(None)) -> Tensor:
        """The fused target's logarithm, [H, C]."""
        exponents = gate.exponents(gate.standardised(self.inputs), self.logs.isfinite(), nets)
        return gate.fused(self.logs, exponents).masked_fill(~self.counts, torch.finfo(torch.float16).min)

    def ndcg(self, gate: Gate) -> float:
        """The sum of NDCG@10 over the examples; a target that no teacher has in its first items counts 0."""
        with torch.no_grad():
            return float(ndcg_at_10(self.logits(gate), torch.zeros(len(self.counts), dtype=torch.int64)).sum())


def held_out(teachers: Sequence[Ranked], holdout: Examples, popularity: Tensor) -> Held:
    """What a gate is fitted to.

    Args:
        holdout: the examples that were ranked. popularity: [n_items] training examples of each target, canonical ids.
    """
    every = torch.stack([each.log_probability for each in teachers]).float()  # [T, H, 1 + S]
    profiles = torch.stack([each.profile for each in teachers])  # [T, H, P]
    every = torch.where(every.isfinite(), every + profiles[..., 1:2], torch.nan)
    number, lists = every.shape[1], every.nan_to_num(nan=-torch.inf).topk(min(_FIRST, every.shape[2]), dim=2).indices
    reached = torch.nonzero((lists == 0).any(2).any(0)).squeeze(1)  # [H']
    columns = torch.cat([torch.zeros(number, 1, dtype=torch.int64), lists.transpose(0, 1).flatten(1)], dim=1)[reached]
    order = columns.sort(dim=1, stable=True)
    new = torch.ones_like(columns, dtype=torch.bool)
    new[:, 1:] = order.values[:, 1:] != order.values[:, :-1]
    counts = torch.zeros_like(new).scatter(1, order.indices, new)  # of equal ones the first
    logs = every[:, reached].gather(2, columns.expand(len(teachers), -1, -1))  # [T, H', C]
    counts &= logs.isfinite().any(0)
    items = torch.cat([holdout.targets[:, None], teachers[0].items.expand(number, -1)], dim=1)[reached]
    items = items.gather(1, columns)  # [H', C]
    inputs = features(logs, profiles[:, reached], popularity[items], holdout.lengths[reached])
    return Held(logs, counts, inputs, len(holdout))


def fit(held: Held, base: Sequence[float], product: bool, names: Sequence[str], say: bool) -> Gate:
    """The gate, with what it is worth in the log; with too few examples one that leaves the base as it is.

    Args:
        base: [T] what each teacher counts without it (`trust`). names: of the teachers. say: log what it is worth.
    """
    plain = Gate(torch.tensor(base), product)
    number = len(held.counts)
    if number < FEW:
        getLogger().warning(
            f"The gate learns nothing: {number} held-out examples have their target among the teachers' first "
            f"{_FIRST} items, and it needs {FEW}. Each teacher counts alike for all candidates, as "
            "kd_teacher_check=weigh has it."
        )
        return plain
    if say:
        _report(held, _on_others(held, base, product), plain, names, product)
    return _learnt(held, base, product)


def _on_others(held: Held, base: Sequence[float], product: bool) -> float:
    """NDCG@10 of gates that were each learnt on the other folds."""
    fold, ndcg = torch.arange(len(held.counts)) % _FOLDS, 0.0
    for number in range(_FOLDS):
        there = fold == number
        gate = _learnt(held.some(torch.nonzero(~there).squeeze(1)), base, product)
        ndcg += held.some(torch.nonzero(there).squeeze(1)).ndcg(gate)
    return ndcg / held.whole


def _learnt(held: Held, base: Sequence[float], product: bool) -> Gate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = Gate(torch.tensor(base), product).train()
        gate.standardise(held.inputs[held.counts])
        for net in range(len(gate.nets)):
            _train(gate, held, slice(net, net + 1))
    return gate.eval().requires_grad_(False)


def _train(gate: Gate, held: Held, net: slice) -> None:
    optimizer = torch.optim.AdamW(gate.nets[net].parameters(), lr=_RATE, weight_decay=_DECAY)
    for _ in range(_EPOCHS):
        for chosen in torch.randperm(len(held.counts)).split(_BATCH):
            loss = -held.some(chosen).logits(gate, net).log_softmax(1)[:, 0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _report(held: Held, gated: float, plain: Gate, names: Sequence[str], product: bool) -> None:
    """The gate beside a mean, the teachers as the check weighs them, and the best of them alone."""
    teachers = len(names)
    alone = {name: held.ndcg(Gate(torch.eye(teachers)[k], product)) / held.whole for k, name in enumerate(names)}
    best = max(alone, key=alone.__getitem__)
    others = {
        "mean": held.ndcg(Gate(torch.full((teachers,), 1 / teachers), False)) / held.whole,
        "weighed" if not product else "product": held.ndcg(plain) / held.whole,
        f"{best} alone": alone[best],
    }
    beside = ", ".join(f"{name} {value:.4f}" for name, value in others.items())
    getLogger().info(
        f"The gate has NDCG@10 {gated:.4f} among the teachers' first items, on held-out examples that it has not seen; "
        f"{beside}."
    )
    if gated <= max(others.values()):
        getLogger().warning(
            f"The gate ranks {held.whole} held-out examples no better than {max(others, key=others.__getitem__)}: too "
            "few examples to learn from, or the teachers fail on the same ones. kd_confidence=uniform with "
            "kd_teacher_check=weigh does without it."
        )
