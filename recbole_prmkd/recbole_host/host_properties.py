"""RecBole's own models by name, and the defaults of their keys."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import recbole
import yaml

_FOLDER = Path(recbole.__file__).parent / "properties" / "model"


class _NumbersLoader(yaml.SafeLoader):
    """Reads 1e-05 as a number, as RecBole's own loader does."""


_NumbersLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


@cache
def hosts() -> dict[str, str]:
    """RecBole's models by their names in small letters, except decision trees and one with `_` in its name."""
    names = [file.stem for file in sorted(_FOLDER.glob("*.yaml"))]
    return {name.lower(): name for name in names if not name.islower() and "_" not in name}


def is_host(kind: str) -> bool:
    """Whether this is the name of one of RecBole's own models."""
    return hosts().get(kind.lower()) == kind


@cache
def host_properties(kind: str) -> dict[str, Any]:
    """The keys of a model's file in RecBole, with their defaults."""
    with (_FOLDER / f"{kind}.yaml").open(encoding="utf-8") as file:
        return yaml.load(file, _NumbersLoader) or {}
