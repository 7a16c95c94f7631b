"""What a sweep file says beside its search space: search, scheduler, number and resources of trials.

One model per part; an unknown key or a wrong value is an error that names it.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from recbole.config import Config

from recbole_prmkd.errors import UserError
from recbole_prmkd.tune.space import Domain, read_lines, read_space


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(_Part):
    """What one trial takes of a node; a fraction of a GPU lets several trials share one (its memory is not fenced)."""

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
    grace: int = Field(default=3, ge=1)
    reduction: float = Field(default=3, gt=1)


class Median(_Part):
    """Stops a trial whose best score is below the median of the others' at the same time."""

    name: Literal["median"]
    grace: int = Field(default=3, ge=1)
    others: int = Field(default=3, ge=1)


class Pbt(_Part):
    """Population based training: every `interval` validations the worst `share` take over the student of one of the
    best, with settings changed a little."""

    name: Literal["pbt"]
    interval: int = Field(default=3, ge=1)
    share: float = Field(default=0.25, ge=0, le=0.5)
    resample: float = Field(default=0.25, ge=0, le=1)


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Scheduler = Annotated[
    Annotated[NoScheduler | Asha | Median | Pbt, Field(discriminator="name")],
    BeforeValidator(_named),
]


class SweepSettings(_Part):
    """A sweep file."""

    space: dict[str, Any] = Field(min_length=1)
    search: Literal["random", "grid", "optuna"] = "random"
    scheduler: Scheduler = NoScheduler()
    trials: int | None = Field(default=None, ge=1)
    seed: int = Field(default=2020, ge=0)
    resources: Resources = Resources()
    max_concurrent: int | None = Field(default=None, ge=1)
    max_failures: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "SweepSettings":
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
        """Trials to draw (for a grid: how often each combination is tried)."""
        return 1 if self.search == "grid" else self.trials or 20

    @property
    def planned(self) -> int:
        """Trials in all."""
        return math.prod(len(domain.values) for domain in self.domains) if self.search == "grid" else self.samples


def read_sweep(path: Path, trials: int | None = None) -> SweepSettings:
    """A sweep file: YAML, or lines of RecBole's `hyper.test`, which hold a space alone.

    Args:
        trials: takes the place of the file's number.
    Raises:
        UserError: the file cannot be read, or one of its keys is wrong; the key is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"There is no sweep file {str(path)!r} to read: check --tune.") from error
    if path.suffix in {".yaml", ".yml"}:
        try:
            # RecBole's reader, to which 1e-4 is a number.
            content = yaml.load(text, Loader=Config.__new__(Config)._build_yaml_loader())
        except yaml.YAMLError as error:
            raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    else:
        content = {"space": read_lines(text, path)}
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: write `space:` and below it one line per key.")
    if trials is not None:
        content["trials"] = trials
    return checked(content, str(path))


def checked(content: dict[str, Any], source: str) -> SweepSettings:
    """The settings of a sweep.

    Raises:
        UserError: an unknown key, a wrong value, or a search space that is not one.
    """
    try:
        settings = SweepSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        hint = f"; legal are {', '.join(SweepSettings.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise UserError(f"{source}: {where + ': ' if where else ''}{first['msg']}{hint}.") from error
    for domain in read_space(settings.space):
        if settings.search == "grid" and domain.kind != "choice":
            raise UserError(f"{source}: {domain.key} is a range, of which search: grid cannot try all; use choice.")
    return settings
