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

_LENGTH = {"uniform": 2, "loguniform": 2, "integer": 2, "quniform": 3}
KINDS = ("choice", *_LENGTH)


@dataclass(frozen=True)
class Domain:
    """The values of one key: those of a choice, or (low, high), or (low, high, step)."""

    key: str
    kind: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.key}: {self.kind} {', '.join(map(str, self.values))}"

    @property
    def witnesses(self) -> list[Any]:
        """Values that stand for all when legality is checked: a choice's all, else the two ends."""
        if self.kind == "choice":
            return list(self.values)
        return [self.drawn(value if self.kind == "integer" else float(value)) for value in self.values[:2]]

    def drawn(self, value: Any) -> Any:
        """What a trial sets, from what Ray draws: lists travel as text, whole steps as floats."""
        if self.kind == "choice":
            return next((known for known in self.values if as_option(known) == value), value)
        whole = self.kind == "quniform" and all(float(bound).is_integer() for bound in self.values)
        inside = self.clamped(value)
        return int(inside) if whole or self.kind == "integer" else float(inside)

    def clamped(self, value: Any) -> Any:
        """A value that PBT has changed by a factor, or Ray has rounded, put back on a step and between the bounds."""
        if self.kind == "choice":
            return value
        low, high, *step = self.values
        if step:  # in decimals: 3 steps of 0.1 are 0.3, not the 0.30000000000000004 of Ray and of floats
            value = float(round(value / step[0]) * Decimal(str(step[0])))
        inside = min(max(value, low), high)
        return round(inside) if self.kind == "integer" else inside


def as_option(value: Any) -> Any:
    """One value of a choice as Ray and Optuna can hold it: a list as text."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value)


def read_space(content: Mapping[str, Any]) -> list[Domain]:
    """The domains of a space as YAML gives it.

    Raises:
        UserError: an empty range, an unknown kind, bounds that are no numbers; the key is named.
    """
    return [_domain(key, entry) for key, entry in content.items()]


def read_lines(text: str, source: Path) -> dict[str, Any]:
    """The space of RecBole's lines `key choice [..]`, `key uniform a,b`, `loguniform a,b`, `quniform a,b,q`.

    Raises:
        UserError: a line that is none of these.
    """
    space: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split(None, 2)
        if not words or line.lstrip().startswith("#"):
            continue
        if len(words) < 3 or words[1] not in {"choice", "uniform", "loguniform", "quniform"}:
            raise UserError(f"{source}, line {number}: {line.strip()!r} is no `key choice [a,b]` or `key uniform a,b`.")
        key, kind, values = words
        try:
            parsed = ast.literal_eval(values if kind == "choice" else f"[{values}]")
            if kind == "choice":
                parsed = [_unquoted(value) for value in parsed]
            if kind == "loguniform":
                parsed = [math.exp(bound) for bound in parsed]
        except (ValueError, SyntaxError, TypeError, OverflowError) as error:
            raise UserError(f"{source}, line {number}: {key} has values {values!r} that are no list.") from error
        space[key] = {kind: parsed}
    return space


def _unquoted(value: Any) -> Any:
    """RecBole writes lists inside a choice as text, '[64,64]'."""
    if isinstance(value, str) and value.strip()[:1] in {"[", "{"}:
        return ast.literal_eval(value)
    return value


def _domain(key: str, entry: Any) -> Domain:
    if not isinstance(entry, dict) or len(entry) != 1 or next(iter(entry)) not in KINDS:
        raise UserError(
            f"The search space of {key} is {entry!r}: write one of {', '.join(KINDS)}, as {{choice: [..]}}."
        )
    ((kind, values),) = entry.items()
    if not isinstance(values, list) or not values:
        raise UserError(f"The search space of {key} is empty: {kind} needs a list of values.")
    if kind == "choice":
        options = [json.dumps(value) for value in values]
        if len(set(options)) != len(options):
            raise UserError(f"The search space of {key} names a value twice: {values}.")
        return Domain(key, kind, tuple(values))
    numbers = [_number(key, value) for value in values]
    if len(numbers) != _LENGTH[kind]:
        raise UserError(f"The search space of {key} has {len(numbers)} numbers: {kind} needs {_LENGTH[kind]}.")
    _check_bounds(key, kind, numbers)
    return Domain(key, kind, tuple(int(n) if kind == "integer" else n for n in numbers))


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"The search space of {key} holds something that is no number: use choice for other values.")
    return value


def _check_bounds(key: str, kind: str, numbers: list[float]) -> None:
    low, high = numbers[:2]
    if low >= high:
        raise UserError(f"The search space of {key} is empty: its lower bound {low} is not below {high}.")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"The search space of {key} starts at {low}: loguniform needs bounds above 0.")
    if kind == "integer" and not all(float(n).is_integer() for n in numbers):
        raise UserError(f"The search space of {key} is {low} to {high}: integer needs whole numbers.")
    if kind == "quniform":
        step = numbers[2]
        if step <= 0:
            raise UserError(f"The search space of {key} has step {step}: quniform needs a step above 0.")
        if any(abs(n / step - round(n / step)) > 1e-9 for n in (low, high)):
            raise UserError(f"The search space of {key}: both bounds {low} and {high} must be multiples of {step}.")
