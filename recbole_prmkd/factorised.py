"""Scores of chosen candidates from a model that can only rank all items, at no cost in the catalogue's size.

Most models rank by one product, users [B, D] x items [D, n_items]. Inside `candidates_alone` that product is made with
the candidates' columns only, so `full_sort_predict` gives [B, C] in place of [B, n_items]; the model is not edited.
What does not follow that form gives another width or an error, which the caller's probe sees.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_PRODUCTS = {"matmul", "mm", "__matmul__"}  # second argument [D, n_items]


class candidates_alone(TorchFunctionMode):
    """Inside, products with a table of all items are made with these items alone."""

    def __init__(self, candidates: Tensor, n_items: int) -> None:
        """candidates: [C] item ids."""
        super().__init__()
        self.candidates, self.n_items = candidates, n_items

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS and len(args) == 2 and _is_table(args[1], 1, self.n_items):
            # Rows of the table itself: columns of its transpose would be gathered one number at a time.
            args = (args[0], args[1].transpose(0, 1)[self.candidates].transpose(0, 1))
        elif name == "linear" and len(args) >= 2 and _is_table(args[1], 0, self.n_items):
            args = (args[0], *(part if part is None else part[self.candidates] for part in args[1:]))
        return func(*args, **(kwargs or {}))


def _is_table(value: Any, items_axis: int, n_items: int) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.shape[items_axis] == n_items
