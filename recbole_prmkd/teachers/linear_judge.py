"""How well a linear model ranks the next items of unseen users, and what makes its scores probabilities."""

from collections.abc import Callable, Iterator
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
from recbole_prmkd.teachers.linear_scores import Floor, blocks, is_in, relative_to_best
from recbole_prmkd.teachers.unseen import ndcg_at_10, without_history

FLOORS = (0.3, 0.1, 0.03, 0.01)
TEMPERATURES = tuple(float(tau) for tau in np.geomspace(0.2, 5.0, 33))

Surprise = Callable[[float, float], float]  # of the targets, by floor and temperature
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
        return self.histories(decay) @ weights

    def histories(self, decay: float) -> sparse.csr_array:
        """The examples' decayed histories, [V, n_items]."""
        return closed_form.histories(self.examples, self.numbers, self.n_items, decay, self.newest)

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

    def _surprise(self, raw: Raw) -> Surprise:
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
        total = 0.0
        for _, value, of_target, _ in self._candidates(raw):
            rank = (value >= of_target[:, None]).sum(1)  # [b], from 1
            found = (of_target > 0) & (rank <= 10)
            total += float(torch.where(found, 1 / torch.log2(rank + 1.0), 0).sum())
        return total / len(self.examples)

    def _candidates(self, raw: sparse.csr_array) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Numbers of examples [b], scores of candidates [b, W] and targets [b], the best outside the history [b]."""
        for index, item, value in blocks(raw):
            value.clamp_(min=0)
            is_target = item == self.examples.targets[index, None]
            had = is_in(item, self.item_seq[index])
            best = value.masked_fill(had, 0).amax(1)
            yield index, value.masked_fill(had & ~is_target, 0), (value * is_target).sum(1), best

    def _surprise(self, raw: sparse.csr_array) -> Surprise:
        had = self.item_seq.sort(dim=1).values
        first = torch.ones_like(had, dtype=torch.bool)
        first[:, 1:] = had[:, 1:] != had[:, :-1]
        left_out = (first & (had > 0) & (had != self.examples.targets[:, None])).sum(1)  # [V]
        parts = []
        for index, value, of_target, best in self._candidates(raw):
            relative = torch.where(best[:, None] > 0, value / best[:, None], 0)  # [b, W]
            above = relative > 0
            zeros = self.n_items - 1 - left_out[index] - above.sum(1)  # candidates without a score above 0
            target = torch.where(best > 0, of_target / best, 0)
            parts.append((relative, above, zeros, target))

        def surprise(floor: float, temperature: float) -> float:
            scale, total = Floor(floor, temperature), 0.0
            for relative, above, zeros, target in parts:
                weight = (scale.weight(relative) * above).sum(1) + zeros * scale.weight(torch.zeros(()))
                total += float((weight.log() - (target + floor).log() / temperature).sum())
            return total / len(self.examples)

        return surprise
