"""What a sweep file says beside its search space: search, scheduler, number and resources of trials.

One model per part; an unknown key or a wrong value is an error that names it.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from recbole.config import Config

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config_files import read_yaml
from recbole_prmkd.tune.space import Domain, read_lines, read_space

_MOST = 10**6  # trials, and validations: more are a slip, and further numbers would not fit into Ray's


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Resources(_Part):
    """What one trial takes of a node. Fractions of a GPU share its time; nothing limits each trial's memory there."""

    cpu: float = Field(default=1, gt=0)
    gpu: float = Field(default=0, ge=0)

    @property
    def threads(self) -> int:
        """Threads that torch computes with."""
        return max(1, int(self.cpu))


class NoScheduler(_Part):
    """Every trial trains to its end."""

    name: Literal["none"] = "none"


class Asha(_Part):
    """Asynchronous successive halving: after `grace` validations, then each `reduction` times as many, the best 1 in
    `reduction` go on."""

    name: Literal["asha"]
    grace: int = Field(default=3, ge=1, le=_MOST)
    reduction: float = Field(default=3, gt=1)


class Median(_Part):
    """Stops a trial whose best score is below the median of the others' at the same time."""

    name: Literal["median"]
    grace: int = Field(default=3, ge=1, le=_MOST)
    others: int = Field(default=3, ge=1, le=_MOST)


class Pbt(_Part):
    """Population based training: every `interval` validations the worst `share` take over the student of one of the
    best, with settings changed a little."""

    name: Literal["pbt"]
    interval: int = Field(default=3, ge=1, le=_MOST)
    share: float = Field(default=0.25, ge=0, le=0.5)
    resample: float = Field(default=0.25, ge=0, le=1)


Scheduler = Annotated[
    Annotated[NoScheduler | Asha | Median | Pbt, Field(discriminator="name")],
    BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value),
]


class SweepSettings(_Part):
    """A sweep file."""

    space: dict[str, Any] = Field(min_length=1)
    search: Literal["random", "grid", "optuna"] = "random"
    scheduler: Scheduler = NoScheduler()
    trials: int | None = Field(default=None, ge=1, le=_MOST)
    seed: int = Field(default=2020, ge=0, lt=2**32)
    resources: Resources = Resources()
    max_concurrent: int | None = Field(default=None, ge=1, le=_MOST)
    max_failures: int = Field(default=2, ge=0, le=_MOST)
    repeat: bool | None = None

    @model_validator(mode="after")
    def _fits(self) -> "SweepSettings":
        ranges = [domain.key for domain in self.domains if domain.kind != "choice"]
        if self.search == "grid" and ranges:
            raise ValueError(f"{ranges[0]} is a range, of which search: grid cannot try all; use choice")
        if self.search == "grid" and self.trials is not None:
            raise ValueError("search: grid tries every combination, so leave trials (--tune_trials) out")
        if self.scheduler.name == "pbt" and self.search != "random":
            raise ValueError("scheduler: pbt changes settings itself, so set search: random")
        return self

    @property
    def domains(self) -> list[Domain]:
        """The search space."""
        return read_space(self.space)

    @property
    def samples(self) -> int:
        """Trials to sample (for a grid: how often each combination is tried)."""
        return 1 if self.search == "grid" else self.trials or 20

    @property
    def repeats(self) -> bool:
        """Whether a setting may be tried twice: on request, and in a population, which changes settings anyway."""
        return bool(self.repeat) or isinstance(self.scheduler, Pbt)

    @property
    def planned(self) -> int:
        """Trials in all: not more than there are different settings."""
        size = math.prod(domain.size for domain in self.domains)
        if self.search == "grid":
            return int(size)
        return self.samples if self.repeats else int(min(self.samples, size))


def read_sweep(path: Path, trials: int | None = None) -> SweepSettings:
    """A sweep file: YAML, or lines of RecBole's `hyper.test`, which hold a space alone.

    Args:
        trials: takes the place of the file's number.
    Raises:
        UserError: the file cannot be read, or one of its keys is wrong; the key is named.
    """
    try:
        if path.suffix in {".yaml", ".yml"}:
            # RecBole's YAML reader, to which 1e-4 is a number.
            content = read_yaml(path, Config.__new__(Config)._build_yaml_loader())
        else:
            content = {"space": read_lines(path.read_text(encoding="utf-8"), path)}
    except (OSError, UnicodeError) as error:
        raise UserError(f"There is no sweep file {str(path)!r} to read: check --tune.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: write `space:` and below it one line per key.")
    try:
        return SweepSettings.model_validate(content | ({} if trials is None else {"trials": trials}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        hint = f"; legal are {', '.join(SweepSettings.model_fields)}" if first["type"] == "extra_forbidden" else ""
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {where + ': ' if where else ''}{said}{hint}.") from error
