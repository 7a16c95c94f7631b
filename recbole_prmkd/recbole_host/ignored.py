"""Settings that nothing reads: a warning with the nearest known key. RecBole lets its users add keys, so no refusal."""

import difflib
import inspect
import re
from collections.abc import Iterable
from functools import cache
from logging import getLogger
from pathlib import Path

import recbole
from recbole.config import Config
from recbole.utils import get_model

# Of the command line and of processes.
_OTHERS = {"model", "dataset", "datasets", "config_files", "train_stage", "nproc", "world_size", "local_rank", "offset"}
_OTHERS |= {"group_offset", "ip", "port"}
_PARTS = ("config", "data", "evaluator", "quick_start", "sampler", "trainer", "utils")  # of RecBole


def warn_of_ignored(*configs: Config) -> None:
    """Log a warning for each setting of the user's that none of these configurations has a use for."""
    unread = [ignored_settings(config) for config in configs]
    for key, known in unread[0].items() if unread else ():
        if all(key in other for other in unread):
            models = ", ".join(dict.fromkeys(config["model"] for config in configs))
            getLogger().warning(f"{key} is ignored: nothing in RecBole reads it for {models}{known or '.'}")


def ignored_settings(config: Config) -> dict[str, str]:
    """The user's settings that nothing reads, each with the nearest known key, as in `; did you mean 'epochs'?`."""
    known = {*config.internal_config_dict, *_OTHERS, *(name for names in config.parameters.values() for name in names)}
    strange = [key for key in config.external_config_dict if key not in known and not key.startswith("kd_")]
    if not strange:
        return {}
    read = known | set(_keys_in(*map(str, _sources(get_model(config["model"])))))
    return {key: _hint(key, read) for key in strange if key not in read}


def _hint(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.75)
    return f"; did you mean {near[0]!r}?" if near else ""


def _sources(model: type) -> list[Path]:
    """Where a setting without a default may be read: RecBole's framework, the model and what it extends."""
    folder = Path(recbole.__file__).parent
    files = [
        folder / "model" / "layers.py",
        *(file for part in _PARTS for file in sorted((folder / part).rglob("*.py"))),
    ]
    for each in model.__mro__[:-1]:
        try:
            files.append(Path(inspect.getfile(each)))
        except (OSError, TypeError):  # defined in a console, or in C
            continue
    return files


@cache
def _keys_in(*files: str) -> frozenset[str]:
    """The keys that these files read: `config["key"]`, `"key" in config`, `config.get("key")`, `config.key`."""
    found: set[str] = set()
    for file in files:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
        found |= set(re.findall(r"""config(?:_dict)?\s*(?:\[|\.get\(|\.)\s*["']?(\w+)""", text))
        found |= set(re.findall(r"""["'](\w+)["'] (?:not )?in (?:self\.)?\w*config""", text))
    return frozenset(found)
