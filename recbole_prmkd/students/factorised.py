"""Scores of chosen candidates from a model that can only rank all items, at no cost in the catalogue's size.

Most models rank by one product, users [B, D] x items [D, n_items]. Inside `candidates_alone` that product is made with
the candidates' columns only, so `full_sort_predict` gives [B, C] in place of [B, n_items]; the model is not edited.
What does not follow that form gives another width or an error, which the caller's probe sees.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PRODUCTS = {"matmul", "mm", "__matmul__"}  # second argument [D, n_items]


class candidates_alone(TorchFunctionMode):
    """Inside, products with a table of all items are made with these items alone."""

    def __init__(self, candidates: Tensor, n_items: int) -> None:
        """candidates: item ids, [C] for all users or [B, C] of each."""
        super().__init__()
        self.candidates, self.n_items = candidates, n_items

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS and len(args) == 2 and _is_table(args[1], 1, self.n_items):
            return self._product(args[0], args[1].transpose(0, 1))
        if name == "linear" and len(args) >= 2 and _is_table(args[1], 0, self.n_items):
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            product = self._product(args[0], args[1])
            return product if bias is None else product + bias[self.candidates].to(product.dtype)  # as AMP's own linear
        return func(*args, **(kwargs or {}))

    def _product(self, users: Tensor, items: Tensor) -> Tensor:
        """[B, C] from users [B, D] and all items [n_items, D]; [B, 1, C] from [B, 1, D]."""
        # Rows of the table itself: columns of its transpose would be gathered one number at a time.
        chosen = items[self.candidates]  # [C, D] or [B, C, D]
        if chosen.dim() == 2:
            return users @ chosen.transpose(0, 1)
        if users.dim() == 3:
            return torch.bmm(users, chosen.transpose(1, 2))
        return torch.bmm(chosen, users.unsqueeze(-1)).squeeze(-1)


def _is_table(value: Any, items_axis: int, n_items: int) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.shape[items_axis] == n_items
