"""How well a linear model ranks the next items of unseen users, and what makes its scores probabilities."""

from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.teachers import closed_form
from recbole_prmkd.teachers.calibration import least
from recbole_prmkd.teachers.closed_form import Matrix
from recbole_prmkd.teachers.linear_scores import Floor, is_in, padded, relative_to_best
from recbole_prmkd.teachers.unseen import ndcg_at_10, without_history

FLOORS = (0.3, 0.1, 0.03, 0.01)
TEMPERATURES = tuple(float(tau) for tau in np.geomspace(0.2, 5.0, 33))

Raw = Any  # scores [V, n_items]: a Tensor, or a scipy.sparse.csr_array


class Judge:
    """Examples of unseen users, V; their scores are dense."""

    def __init__(self, examples: Examples, n_items: int, newest: int) -> None:
        self.examples, self.n_items, self.newest = examples, n_items, newest
        self.numbers = torch.arange(len(examples))
        self.item_seq, _ = examples.histories(self.numbers, int(examples.lengths.max()))

    def raw(self, weights: Matrix, decay: float) -> Raw:
        """Scores [V, n_items]."""
        return torch.from_numpy(self._product(weights, decay))

    def _product(self, weights: Matrix, decay: float) -> Any:
        return closed_form.histories(self.examples, self.numbers, self.n_items, decay, self.newest) @ weights

    def mixed(self, first: Raw, second: Raw, factor: float) -> Raw:
        """first + factor x second."""
        return torch.add(first, second, alpha=factor)

    def spread(self, raw: Raw) -> float:
        """The standard deviation of all scores."""
        return float(raw.std())

    def ndcg(self, raw: Raw) -> float:
        """NDCG@10 among the items that the user has not had."""
        return float(ndcg_at_10(self._unseen(raw), self.examples.targets).mean())

    def _unseen(self, scores: Tensor) -> Tensor:
        return without_history(scores, self.item_seq, self.examples.targets)

    def calibrated(self, raw: Raw) -> tuple[float, float]:
        """Floor and temperature under which the targets are most likely."""
        surprise = self._surprise(raw)
        found = ((*least(partial(surprise, floor), TEMPERATURES), floor) for floor in FLOORS)
        _, temperature, floor = min(found)
        return floor, temperature

    def _surprise(self, raw: Raw) -> Any:
        relative = relative_to_best(raw, self.item_seq)

        def surprise(floor: float, temperature: float) -> float:
            logits = self._unseen((relative + floor).log()) / temperature
            return float(functional.cross_entropy(logits, self.examples.targets))

        return surprise


class SparseJudge(Judge):
    """The same where there are too many items for dense scores: of all others the score is 0."""

    def raw(self, weights: Matrix, decay: float) -> Raw:
        """Scores [V, n_items], sparse."""
        return self._product(weights, decay)

    def mixed(self, first: sparse.csr_array, second: sparse.csr_array, factor: float) -> Raw:
        """first + factor x second."""
        return first + factor * second

    def spread(self, raw: sparse.csr_array) -> float:
        """The standard deviation of all scores, those that are 0 too."""
        number, data = raw.shape[0] * raw.shape[1], raw.data.astype(np.float64)
        return float(np.sqrt(max(0.0, (np.square(data).sum() - data.sum() ** 2 / number) / max(1, number - 1))))

    def ndcg(self, raw: sparse.csr_array) -> float:
        """NDCG@10; 0 for a target without a score above 0, which all items without a score precede."""
        value, of_target, _ = self._candidates(raw)
        rank = (value >= of_target[:, None]).sum(1)  # [V], from 1
        found = (of_target > 0) & (rank <= 10)
        return float(torch.where(found, 1 / torch.log2(rank + 1.0), 0).mean())

    def _candidates(self, raw: sparse.csr_array) -> tuple[Tensor, Tensor, Tensor]:
        """Scores above 0 of the candidates [V, W], of the targets [V], and the best one outside the history [V]."""
        item, value = padded(raw)
        value.clamp_(min=0)
        is_target = item == self.examples.targets[:, None]
        had = is_in(item, self.item_seq)
        best = value.masked_fill(had, 0).amax(1)
        return value.masked_fill(had & ~is_target, 0), (value * is_target).sum(1), best

    def _surprise(self, raw: sparse.csr_array) -> Any:
        value, of_target, best = self._candidates(raw)
        relative = torch.where(best[:, None] > 0, value / best[:, None], 0)
        target = torch.where(best > 0, of_target / best, 0)
        had = self.item_seq.sort(dim=1).values
        first = torch.ones_like(had, dtype=torch.bool)
        first[:, 1:] = had[:, 1:] != had[:, :-1]
        left_out = (first & (had > 0) & (had != self.examples.targets[:, None])).sum(1)
        at_floor = self.n_items - 1 - left_out - (relative > 0).sum(1)  # candidates without a score above 0

        def surprise(floor: float, temperature: float) -> float:
            scale = Floor(floor, temperature)
            total = scale.weight(relative).masked_fill_(relative == 0, 0).sum(1)
            total = total + at_floor * scale.weight(torch.zeros(()))
            return float((total.log() - (target + floor).log() / temperature).mean())

        return surprise
