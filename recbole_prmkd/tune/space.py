"""A search space: key -> the values that a sweep may give it.

In YAML, one line per key; bounds are the values themselves:

    kd_weight: {loguniform: [0.5, 20]}
    kd_temperature: {uniform: [0.5, 2]}
    dropout_prob: {quniform: [0, 0.5, 0.1]}      low, high, step
    kd_pacing_length: {integer: [2, 20]}         both ends included
    kd_curriculum: {choice: [none, easy]}

In RecBole's `hyper.test` lines, `learning_rate loguniform -8,0` gives powers of e, as its own tuner reads them.
"""

import ast
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.shapes import check_plain

_NUMBERS = {"uniform": 2, "loguniform": 2, "integer": 2, "quniform": 3}
_MOST = 10**12  # values of a range that has a step
KINDS = ("choice", *_NUMBERS)


@dataclass(frozen=True)
class Domain:
    """The values of one key: those of a choice, or (low, high), or (low, high, step)."""

    key: str
    kind: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.key}: {self.kind} {', '.join(map(str, self.values))}"

    @property
    def representatives(self) -> list[Any]:
        """Settings that stand for all when the space is checked: every value of a choice, both ends of a range."""
        if self.kind == "choice":
            return list(self.values)
        return [self.setting(value) for value in self.values[:2]]

    @property
    def size(self) -> float:
        """Number of values; infinite for a range of real numbers."""
        if self.kind in ("uniform", "loguniform"):
            return math.inf
        if self.kind == "choice":
            return len(self.values)
        low, high, *step = self.values
        return round((high - low) / (step[0] if step else 1)) + 1

    @property
    def options(self) -> list[Any]:
        """All values as Ray samples them, of a finite domain."""
        if self.kind == "choice":
            return [as_option(value) for value in self.values]
        low, _, *step = self.values
        return [self.setting(low + number * (step[0] if step else 1)) for number in range(int(self.size))]

    def setting(self, sampled: Any) -> Any:
        """What a trial sets, from a value that Ray gives: a list is text there, PBT multiplies beyond the bounds."""
        if self.kind == "choice":
            return next((value for value in self.values if as_option(value) == sampled), sampled)
        low, high, *step = self.values
        if step:  # in decimals: 3 steps of 0.1 are 0.3, not Ray's 0.30000000000000004
            sampled = float(round(sampled / step[0]) * Decimal(str(step[0])))
        inside = min(max(sampled, low), high)
        whole = self.kind == "integer" or (step and all(float(value).is_integer() for value in self.values))
        return round(inside) if whole else float(inside)


def as_option(value: Any) -> Any:
    """One value of a choice as Ray and Optuna can hold it: a list as text."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def read_space(content: Mapping[str, Any]) -> list[Domain]:
    """The domains of a space as YAML gives it.

    Raises:
        UserError: an empty range, an unknown kind, bounds that are no numbers; the key is named.
    """
    check_plain(content)
    domains = []
    for key, entry in content.items():
        kind, values = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", ())
        if kind not in KINDS:
            raise UserError(
                f"The search space of {key} is {entry!r}: write one of {', '.join(KINDS)}, as {{choice: [..]}}."
            )
        fault = _fault(kind, values)
        if fault:
            raise UserError(f"The search space of {key} {fault} (it is {kind}: {values}).")
        domains.append(Domain(key, kind, tuple(values)))
    return domains


def _fault(kind: str, values: Any) -> str | None:
    """What is wrong with the values of one key, or None."""
    if not isinstance(values, list) or not values:
        return "is empty: write a list of values"
    if kind == "choice":
        try:
            repeated = len({json.dumps(value) for value in values}) < len(values)
        except (TypeError, ValueError):  # a date, bytes
            return "holds what is no number, text, list or dict: put it in quotes"
        return "names a value twice: write each once" if repeated else None
    numbers = [value for value in values if type(value) in (int, float) and math.isfinite(value)]
    if not len(numbers) == len(values) == _NUMBERS[kind]:
        return f"needs {_NUMBERS[kind]} numbers: use choice for other values"
    low, high, *step = numbers
    if low >= high:
        return "is empty: write the lower bound first"
    if kind == "loguniform" and low <= 0:
        return "needs bounds above 0"
    if kind == "integer" and any(type(number) is float or abs(number) > _MOST for number in numbers):
        return f"needs whole numbers up to {_MOST}"
    if step and not 0 < (high - low) <= _MOST * abs(step[0]):
        return f"has more than {_MOST} values: write a larger step"
    if step and (step[0] <= 0 or any(abs(end / step[0] - round(end / step[0])) > 1e-9 for end in (low, high))):
        return "needs a step above 0, and bounds that are multiples of it"
    return None


def read_lines(text: str, source: Path) -> dict[str, Any]:
    """The space of RecBole's lines `key choice [..]`, `key uniform a,b`, `loguniform a,b`, `quniform a,b,q`.

    Raises:
        UserError: a line that is none of these.
    """
    space: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            key, kind, values = line.split(None, 2)
            parsed = ast.literal_eval(values if kind == "choice" else f"[{values}]")
            if kind == "choice":  # RecBole writes lists inside a choice as text, '[64,64]'
                parsed = [ast.literal_eval(v) if isinstance(v, str) and v.startswith("[") else v for v in parsed]
            space[key] = {kind: [math.exp(bound) for bound in parsed] if kind == "loguniform" else parsed}
        except (ValueError, SyntaxError, TypeError, OverflowError) as error:
            raise UserError(
                f"{source}, line {number}: {line.strip()!r} is no line such as `key choice [a,b]` or `key uniform a,b`."
            ) from error
    return space
