"""The settings of `Linear`: those that rank best for users whom the model has not seen.

In a large catalogue a model for each setting would cost as much as all models that teach. There the settings are
compared on the items that plain co-occurrence puts first for these users, and only the best is fitted for all items, to
choose floor and temperature. Our choice.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.teachers import closed_form
from recbole_prmkd.teachers.closed_form import Matrix
from recbole_prmkd.teachers.linear_judge import Judge, SparseJudge
from recbole_prmkd.teachers.linear_scores import blocks, is_in
from recbole_prmkd.teachers.local_ridge import MANY_ITEMS

EASE_PENALTIES = (100.0, 300.0, 1000.0)
TRANSITION_PENALTIES = (300.0, 1000.0)
DECAYS = (0.8, 0.9, 0.95)
MIXES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # of transitions, in units of EASE's standard deviation
_TRANSITION_DECAY, _TRANSITION_NEWEST = 0.8, 20  # of the histories that transitions are learnt from
_EXAMPLES, _EXAMPLES_OF_MANY = 2000, 1000  # of unseen users, at most; where there are more than `MANY_ITEMS`
_COMPARED = 25  # items of an example for each of both models, where there are so many
_AT_A_TIME = 64  # examples whose co-occurring items are counted at a time


@dataclass(frozen=True)
class Choice:
    """What was chosen on unseen users; `ndcg` is theirs, of the next item among those that they have not had."""

    ease_penalty: float = 300.0
    transition_penalty: float = 300.0
    decay: float = 0.9
    mix: float = 0.0
    floor: float = 0.1
    temperature: float = 0.5
    ndcg: float = 0.0

    def described(self) -> str:
        """For a log."""
        values = (f"{name.replace('_', ' ')} {value:.4g}" for name, value in asdict(self).items() if name != "ndcg")
        return f"NDCG@10 {self.ndcg:.4f} with {', '.join(values)}"


def fitted(examples: Examples, n_items: int, choice: Choice) -> Matrix:
    """M of these examples' users."""
    weights = closed_form.ease(_gram(examples, n_items), choice.ease_penalty)
    if choice.mix == 0:
        return weights
    transitions = closed_form.ridge(*_transitions(examples, n_items), choice.transition_penalty)
    if not sparse.issparse(weights):
        return weights + choice.mix * transitions
    transitions.data *= np.float32(choice.mix)  # in place: of many items each copy is large
    return weights + transitions


def choose(examples: Examples, fold: Tensor, n_items: int, newest: int) -> Choice:
    """The settings that rank best for the users of fold 0 when the others' are learnt from.

    fold: [N] of the examples' users.
    """
    others, many = examples.select(torch.nonzero(fold != 0).squeeze(1)), n_items > MANY_ITEMS
    unseen = examples.select(_newest_examples(examples, fold == 0, _EXAMPLES_OF_MANY if many else _EXAMPLES))
    judge = (Judge if n_items <= closed_form.DENSE_ITEMS else SparseJudge)(unseen, n_items, newest)
    gram, (history_gram, right) = _gram(others, n_items), _transitions(others, n_items)
    targets = _first_items(judge, gram, right) if many else None
    ease = (-1.0, 0.0, 0.0, None)
    for penalty in EASE_PENALTIES:
        weights = closed_form.ease(gram, penalty, targets)
        ndcg, decay = max((judge.ndcg(judge.raw(weights, decay)), decay) for decay in DECAYS)
        if ndcg > ease[0]:
            ease = (ndcg, penalty, decay, judge.raw(weights, decay))
        del weights
    del gram
    ndcg, ease_penalty, decay, first = ease
    best = (ndcg, 0.0, TRANSITION_PENALTIES[0], first)
    for penalty in TRANSITION_PENALTIES:
        raw = judge.raw(closed_form.ridge(history_gram, right, penalty, targets), decay)
        unit = judge.spread(first) / max(judge.spread(raw), 1e-9)
        for mix in MIXES[1:]:
            mixed = judge.mixed(first, raw, mix * unit)
            if (score := judge.ndcg(mixed)) > best[0]:
                best = (score, mix * unit, penalty, mixed)
    del history_gram, right
    ndcg, mix, transition_penalty, raw = best
    choice = Choice(ease_penalty, transition_penalty, decay, mix, ndcg=ndcg)
    if many:
        raw = judge.raw(fitted(others, n_items, choice), decay)
        choice = replace(choice, ndcg=judge.ndcg(raw))
    floor, temperature = judge.calibrated(raw)
    return replace(choice, floor=floor, temperature=temperature)


def _first_items(judge: Judge, gram: sparse.csr_array, right: sparse.csr_array) -> np.ndarray:
    """The items outside the histories of the judge's examples that occur most often with, and after, those in them.

    Counts are relative to how frequent both items are.
    """
    norm = 1 / np.sqrt(gram.diagonal() + np.float32(EASE_PENALTIES[1]))
    history = judge.histories(DECAYS[1])
    history.data *= norm[history.indices]
    found = torch.zeros(gram.shape[0], dtype=torch.bool)
    for counts in (gram, right):
        for part in judge.numbers.split(_AT_A_TIME):
            raw = history[part.numpy()] @ counts
            raw.data *= norm[raw.indices]
            for index, item, value in blocks(raw, _COMPARED):
                value.masked_fill_(is_in(item, judge.item_seq[part[index]]), 0)
                found[item.gather(1, value.topk(_COMPARED, dim=1).indices).long()] = True
    found[0] = False
    return np.flatnonzero(found.numpy())


def _newest_examples(examples: Examples, wanted: Tensor, number: int) -> Tensor:
    """Numbers of the wanted users' newest examples: this many at most, as many of each user as that allows."""
    numbers = torch.nonzero(wanted).squeeze(1)
    _, user, count = torch.unique_consecutive(examples.users[numbers], return_inverse=True, return_counts=True)
    age = count.cumsum(0)[user] - 1 - torch.arange(len(numbers))  # 0 for a user's newest example
    return numbers[torch.argsort(age, stable=True)[:number].sort().values]


def _gram(examples: Examples, n_items: int) -> Matrix:
    x = closed_form.interactions(examples, n_items)
    return (x.T @ x).tocsr()


def _transitions(examples: Examples, n_items: int) -> tuple[Matrix, Matrix]:
    return closed_form.transitions(examples, n_items, _TRANSITION_DECAY, _TRANSITION_NEWEST)
