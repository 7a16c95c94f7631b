"""A model's scores as products of a user's and an item's vector, where they are such products.

Nothing is known of the model's class: while it ranks, its products with a table of all items are noted, and its scores
are compared with them.
"""

import numpy as np
import torch
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.serving.scoring import Scorer
from recbole_prmkd.teachers.products import NotedProducts

_TRIED = 64  # users that the products are compared for
_CLOSE = 1e-4  # of the largest score, and at least of 1


class Products:
    """User and item vectors of a loaded model: score = user vector · item vector.

    A constant factor is in the item vectors. A bias of each item is their last number, where the users have 1.

    Raises:
        UserError: the scores are no such products.
    """

    def __init__(self, scorer: Scorer, users: np.ndarray) -> None:
        self.scorer = scorer
        scores, products = _noted(scorer, users[:_TRIED])
        for choose in (_last, _all):
            self._choose = choose
            found = choose(products) if products else None
            fitted = _fit(scores, *found) if found is not None else None
            if fitted is not None:
                self.items, self._biased = fitted
                return
        raise UserError(
            f"The scores of {type(scorer.model).__name__} are no product of a user's and an item's vector: use "
            "--recommend, or export it with --format=weights."
        )

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.items.shape[1]

    def users(self, users: np.ndarray) -> Tensor:
        """The users' vectors, [B, D]."""
        return self.scored(users)[1]

    def scored(self, users: np.ndarray) -> tuple[Tensor, Tensor]:
        """The users' scores [B, n_items] and their vectors [B, D]."""
        scores, products = _noted(self.scorer, users)
        found = self._choose(products)
        assert found is not None
        vectors = found[0]
        return scores, torch.nn.functional.pad(vectors, (0, 1), value=1.0) if self._biased else vectors


def _noted(scorer: Scorer, users: np.ndarray) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The scores [B, n_items], and the products whose users are these."""
    with NotedProducts(scorer.n_items) as noted:
        scores = scorer.scores(users)
    of_users = [
        (vectors.detach().reshape(len(users), -1).float(), items.detach().float())
        for vectors, items in noted.found
        if vectors.numel() == len(users) * items.shape[1]
    ]
    return scores, of_users


def _last(products: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return products[-1]


def _all(products: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All of them side by side, which is their sum (FPMC)."""
    users, items = zip(*products, strict=True)
    return torch.cat(users, dim=1), torch.cat(items, dim=1)


def _fit(scores: Tensor, users: Tensor, items: Tensor) -> tuple[Tensor, bool] | None:
    """The item vectors whose products are the scores, and whether there is a bias; None: the scores are others."""
    scores, products = scores[:, 1:].double(), (users.double() @ items.double().T)[:, 1:]
    centred = products - products.mean(dim=0)
    of_scores = scores - scores.mean(dim=0)
    size = centred.square().sum()
    factor = float((of_scores * centred).sum() / size) if size > 0 else 1.0
    factor = 1.0 if abs(factor - 1) < _CLOSE else factor
    bias = (scores - factor * products).mean(dim=0)
    close = _CLOSE * max(1.0, float(scores.abs().max()))
    if not bool(((scores - factor * products - bias).abs() <= close).all()):
        return None
    biased = bool((bias.abs() > close / 10).any())
    vectors = items * factor
    if biased:
        column = torch.nn.functional.pad(bias.to(items.dtype), (1, 0))
        vectors = torch.cat([vectors, column[:, None]], dim=1)
    return vectors, biased
