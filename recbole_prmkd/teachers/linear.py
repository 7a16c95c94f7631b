"""Linear: a collaborative model in closed form, EASE plus transitions. It reads no text and fits in seconds.

    raw(c)    sum over the history's items j of decay ** age(j) x M[j, c],   M = B + mix R       (`closed_form`)
    score(c)  log(floor + max(raw(c), 0) / the largest raw score of an item outside the history)

Penalties, decay and mix are those that rank best for users whom the model has not seen: the first of `folds` parts of
the users (`linear_choice`). Floor and temperature are those under which these users' next items are most likely, so
that the soft targets of teachers of different kinds stand on one scale. The sum of both models is SLIST's (WWW'21); the
rest is our choice.

A student is taught by M of the other parts' users alone (`largest_scores`), since M of all users knows the targets of
its training examples.
"""

from collections.abc import Iterator
from dataclasses import astuple
from logging import getLogger

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from torch import Tensor, nn

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers import closed_form
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.closed_form import Matrix
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.linear_choice import Choice, choose, fitted
from recbole_prmkd.teachers.linear_scores import Floor, Kept, of_dense, of_sparse, relative_to_best, rows_at_a_time
from recbole_prmkd.teachers.local_ridge import MANY_ITEMS

_KEPT, _KEPT_OF_MANY = 200, 100  # weights of an item in M of all users; where there are more than `MANY_ITEMS`
_SCORES = 1 << 24  # scored at a time


class Linear(Teacher):
    """The model of all users, to serve and to be measured; and those of each fold's other users, to teach.

    An item's vector says whether it is covered. A history's "vector" [n_items] holds its scores of all items, before
    the logarithm; it is 0 for a history that says nothing.
    """

    version = "1.2"
    columns: Tensor
    known: Tensor
    choice: Tensor
    side_information = ()
    item_text = "nothing"
    learns = False
    scores_all_items = True

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.newest, self.folds, self.seed = config["MAX_ITEM_LIST_LENGTH"], config["folds"], config["seed"]
        kept = min(_KEPT if self.n_items <= MANY_ITEMS else _KEPT_OF_MANY, self.n_items)
        self.register_buffer("columns", torch.zeros(self.n_items, kept, dtype=torch.int32))
        self.weights = nn.Parameter(torch.zeros(self.n_items, kept), requires_grad=False)
        self.register_buffer("known", torch.zeros(self.n_items, dtype=torch.bool))
        self.register_buffer("choice", torch.tensor(astuple(Choice()), dtype=torch.float64))

    @property
    def chosen(self) -> Choice:
        """The settings in force."""
        return Choice(*self.choice.tolist())

    @property
    def temperature(self) -> float:
        """Divides the scores in the soft targets."""
        return self.chosen.temperature

    def encode_items(self) -> Tensor:
        """Which items were in training, [n_items, 1]."""
        return self.known[:, None].float()

    def covered_items(self) -> Tensor:
        """Items that were in training, [n_items]."""
        return self.known.cpu()

    def encode_histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor) -> Tensor:
        """Scores of all items before the logarithm, [B, n_items]."""
        size = max(1, _SCORES // max(self.n_items, item_seq.shape[1] * self.columns.shape[1]))
        blocks = zip(item_seq.split(size), item_seq_len.split(size), strict=True)
        return torch.cat([self._encode(*block) for block in blocks])

    def _encode(self, item_seq: Tensor, length: Tensor) -> Tensor:
        age = length[:, None] - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)  # [B, L]
        weight = torch.where(age >= 0, self.chosen.decay ** age.clamp(min=0), 0)  # [B, L]
        values = (self.weights[item_seq] * weight[..., None]).flatten(1)  # [B, L x K]
        raw = torch.zeros(len(item_seq), self.n_items, device=item_seq.device)
        raw.scatter_add_(1, self.columns[item_seq].long().flatten(1), values)  # [B, n_items]
        raw[:, 0] = 0
        return relative_to_best(raw, item_seq)

    def scores(self, histories: Tensor, items: Tensor) -> Tensor:
        """Logarithms of the histories' scores: [B, n_items], [n_items, 1] -> [B, n_items]."""
        return (histories + self.chosen.floor).log()

    def solve(self, data: TeacherData) -> None:
        """Choose the settings and fit, all in training examples.

        Raises:
            UserError: there is one user alone.
        """
        fold = self._fold_of_examples(data.fit, data.fit)
        if not len(fold) or int(fold.max()) == 0:
            raise UserError("Linear needs training examples of at least two users: leave it out of kd_teachers.")
        choice = choose(data.fit, fold, self.n_items, self.newest)
        getLogger().info(f"Linear on unseen users: {choice.described()}.")
        values, columns = closed_form.largest(fitted(data.fit, self.n_items, choice), self.columns.shape[1])
        self.weights.copy_(torch.from_numpy(values))
        self.columns.copy_(torch.from_numpy(columns))
        self.known[data.fit.items] = True
        self.known[data.fit.targets] = True
        self.known[0] = False
        self.choice.copy_(torch.tensor(astuple(choice), dtype=torch.float64))

    def largest_scores(self, data: TeacherData, number: int) -> Iterator[tuple[Tensor, Kept]]:
        """Numbers [B] of training examples and what to store of their scores, by models that have not seen their users.

        Every example comes once. number: of items of an example, M.
        """
        fold = self._fold_of_examples(data.fit, data.train)
        of_fit = self._fold_of_examples(data.fit, data.fit)
        for part in range(int(of_fit.max()) + 1):
            numbers = torch.nonzero(fold == part).squeeze(1)
            if len(numbers):
                others = data.fit.select(torch.nonzero(of_fit != part).squeeze(1))
                yield from self.scores_of(data.train, numbers, fitted(others, self.n_items, self.chosen), number)

    def scores_of(
        self, examples: Examples, numbers: Tensor, weights: Matrix, number: int
    ) -> Iterator[tuple[Tensor, Kept]]:
        """The same of the examples with these numbers, by a model with these weights."""
        scale, known = Floor(self.chosen.floor, self.temperature), self.covered_items()
        dense = isinstance(weights, np.ndarray)
        if not dense and self.n_items > MANY_ITEMS:  # the weights that serve, and no others
            weights = closed_form.trimmed(weights, self.columns.shape[1])
        for index in numbers.split(rows_at_a_time(self.n_items, dense)):
            item_seq, _ = examples.histories(index, self.newest)
            history = closed_form.histories(examples, index, self.n_items, self.chosen.decay, self.newest)
            if dense:
                yield index, of_dense(_times(history, weights), item_seq, known, number, scale)
            else:
                for part, kept in of_sparse(history @ weights, item_seq, known, number, scale):
                    yield index[part], kept

    def _fold_of_examples(self, fit: Examples, examples: Examples) -> Tensor:
        """The part of the users that each example's user is in, [N]; users come in the order of `fit`."""
        users = torch.from_numpy(np.unique(fit.users.numpy(), return_index=True)[1]).sort().values
        users = fit.users[users]  # in the order of their tokens
        parts = torch.arange(len(users)) % max(1, min(self.folds, len(users)))
        shuffled = parts[torch.randperm(len(users), generator=torch.Generator().manual_seed(self.seed))]
        highest = max(int(part.users.max()) if len(part) else 0 for part in (fit, examples))
        of_user = torch.zeros(highest + 1, dtype=torch.int64)
        of_user[users] = shuffled
        return of_user[examples.users]


def _times(history: Matrix, weights: Matrix) -> Tensor:
    """H M [B, n_items], dense."""
    product = history @ weights
    return torch.from_numpy(product if isinstance(product, np.ndarray) else product.toarray())
