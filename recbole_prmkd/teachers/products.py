"""Whether a RecBole model's scores of all items are the product of two vectors, and which vectors these are."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TOLERANCE = 1e-4  # of the largest score


def bias_of(model: AbstractRecommender, batch: Interaction, n_items: int) -> tuple[bool, Tensor | None]:
    """Whether `full_sort_predict` is one product of vectors plus a bias of items; and that bias [n_items], if any."""
    with NotedProducts(n_items) as products:
        scores = model.full_sort_predict(batch).view(len(batch), -1).float()
    if len(products.found) != 1 or scores.shape[1] != n_items:
        return False, None
    users, table = products.found[0]
    users = users.reshape(-1, table.shape[1])
    if len(users) != len(batch) or not scores.isfinite().all():
        return False, None
    rest = scores - users.float() @ table.float().T  # [B, n_items]
    allowed = _TOLERANCE * float(scores.abs().max()) + 1e-12
    if bool((rest.abs() <= allowed).all()):
        return True, None
    if len(batch) > 1 and bool(((rest - rest[0]).abs() <= allowed).all()):
        return True, rest.mean(0)
    return False, None


def first_product(model: AbstractRecommender, batch: Interaction, n_items: int) -> tuple[Tensor, Tensor]:
    """The vectors of the batch [B, D] or [B, 1, D], and all items' [n_items, D]; the product is not computed."""
    with NotedProducts(n_items, stop=True) as products, suppress(_Found):
        model.full_sort_predict(batch)
    return products.found[0]


class _Found(Exception):
    pass


class NotedProducts(TorchFunctionMode):
    """Inside, products with a table of all items are noted; with `stop` the first one ends the computation."""

    def __init__(self, n_items: int, stop: bool = False) -> None:
        super().__init__()
        self.n_items, self.stop = n_items, stop
        self.found: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("matmul", "mm", "__matmul__") and len(args) == 2 and self._is_table(args[1], 1):
            self._note(args[0], args[1].transpose(0, 1))
        elif name == "linear" and len(args) >= 2 and self._is_table(args[1], 0):
            self._note(args[0], args[1])
        return func(*args, **(kwargs or {}))

    def _note(self, users: Tensor, table: Tensor) -> None:
        self.found.append((users, table))
        if self.stop:
            raise _Found

    def _is_table(self, value: Any, items_axis: int) -> bool:
        return isinstance(value, Tensor) and value.dim() == 2 and value.shape[items_axis] == self.n_items
