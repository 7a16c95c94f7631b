"""Hypothesis strategies for settings, config files and sweep files as users may hand them over; mostly wrong.

The values are in `fuzz_values.yaml`. The strategies for data sets and vectors are in `fuzz_files.py`.
"""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from recbole.utils import argument_list

from recbole_prmkd.recbole_host import keys

CODE = "__import__('os').system('touch P')"  # makes a file P where it is run
PICKLE = b"cos\nsystem\n(S'touch P'\ntR."  # so does this where it is loaded


def _spelt_out(value: Any) -> Any:
    """A value of the file with its placeholders replaced."""
    if isinstance(value, str):
        placeholders = {"CODE": CODE, "LONG": "x" * 3000, "DIGITS": "9" * 400, "SURROGATE": "a\udce9"}
        for name, text in placeholders.items():
            value = value.replace(name, text)
        return value
    if isinstance(value, list):
        return [_spelt_out(part) for part in value]
    if isinstance(value, dict):
        return {_spelt_out(key): _spelt_out(part) for key, part in value.items()}
    return value


POOL: dict[str, list[Any]] = _spelt_out(yaml.safe_load((Path(__file__).parent / "fuzz_values.yaml").read_text("utf-8")))


def of(name: str) -> st.SearchStrategy[Any]:
    """One of the values of this name in the file."""
    return st.sampled_from(POOL[name])


# Settings ----------------------------------------------------------------------------------------------------------


def known_keys(own: dict[str, Any]) -> st.SearchStrategy[str]:
    """A key of RecBole, of a model, of this package, or of a teacher."""
    lists = [name for name in dir(argument_list) if name.endswith("_arguments")]
    stock = {*POOL["keys"], *(key for name in lists for key in getattr(argument_list, name))}
    kinds = ("Vectors", "UniSRec", "Linear")
    teachers = {f"kd_{kind}_{key}".lower() for kind in kinds for key in keys.teacher_settings(kind, {})}
    groups = [stock, stock, {*own} - stock, {*keys.key_table()}, teachers]
    return st.one_of(*(st.sampled_from(sorted(group - {*POOL["left_out"]})) for group in groups))


@st.composite
def misspelt(draw: st.DrawFn, words: st.SearchStrategy[str]) -> str:
    """A word with a letter less or more, or in another case."""
    word = draw(words)
    place, letter = draw(st.integers(0, len(word) - 1)), draw(st.sampled_from("aeX_-1é "))
    shorter, longer = word[:place] + word[place + 1 :], word[:place] + letter + word[place:]
    return draw(st.sampled_from([shorter, longer, word.upper(), word.title()]))


def _near(default: Any) -> list[Any]:
    """A default changed a little."""
    if isinstance(default, dict):
        others = (None, 0, -1, "a", [], {}, [1], CODE, 1e308)
        changed = [{**default, name: value} for name in default for value in others]
        return [default, *changed, *({name: {"a": value}} for name, value in default.items())]
    if isinstance(default, list):
        return [default, default * 2, default[:1], [*default, 0], [*default, "a"], [*default, None], str(default)]
    if isinstance(default, bool):
        return [not default, str(default), int(default)]
    if isinstance(default, int | float):
        return [default + 1, -default, default / 3, str(default), [default], default == 0, f"{default}x"]
    if isinstance(default, str):
        return [default.lower(), default.upper(), default * 2, [default], {default: default}, default[:-1]]
    return [default]


def value_of(key: Any, known: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A value for this key: its default changed a little, a legal word, or anything."""
    entry = keys.key_table().get(key, {}) if isinstance(key, str) else {}
    near = [*_near(known.get(key, entry.get("default"))), *entry.get("choices", [])]
    counts = isinstance(key, str) and any(word in key.lower() for word in POOL["counts"])
    legal = [value for value in POOL["values"] if not (counts and isinstance(value, int | float) and value > 100)]
    return st.one_of(st.sampled_from(near), of("words"), st.sampled_from(legal))


@st.composite
def settings_of(draw: st.DrawFn, known: dict[str, Any], most: int = 3) -> dict[Any, Any]:
    """Up to `most` settings; known: the model's own with their defaults."""
    names = known_keys(known)
    odd = st.sampled_from([5, None, True, 1.5, "", "a b", CODE, "日本", "kd_", "KD_weight", "kd", "kd_teachers"])
    chosen = draw(
        st.lists(st.one_of(names, names, names, misspelt(names), odd), min_size=1, max_size=most, unique_by=str)
    )
    return {key: draw(value_of(key, known)) for key in chosen}


def config_files() -> st.SearchStrategy[bytes]:
    """The bytes of a config file."""
    texts = [text.encode() for text in POOL["yaml"]]
    texts += ["epochs: 1".encode(encoding) for encoding in ("utf-16", "utf-32", "utf-8-sig")]
    texts += [b"\xfc: 1", b"\x00", bytes(range(256)), b"a: " + b"[" * 3000, b"a: " + b"9" * 5000]
    return st.one_of(st.sampled_from(texts), st.sampled_from(texts), st.binary(max_size=20))


# Sweep files -------------------------------------------------------------------------------------------------------

_RIGHT: dict[str, Any] = {
    "learning_rate": {"loguniform": [0.001, 0.01]},
    "kd_weight": {"choice": [1, 2]},
    "kd_temperature": {"uniform": [0.5, 2]},
    "kd_pacing_length": {"integer": [2, 5]},
    "kd_dropout": {"quniform": [0, 0.5, 0.1]},
    "train_batch_size": {"choice": [32, 64]},
}
_KINDS = ["choice"] * 8 + ["uniform", "loguniform", "integer", "quniform", "lognormal", 5]


@st.composite
def spaces(draw: st.DrawFn, known: dict[str, Any]) -> dict[Any, Any]:
    """A search space, right in most of its keys."""
    space: dict[Any, Any] = {
        key: _RIGHT[key] for key in draw(st.sets(st.sampled_from(sorted(_RIGHT)), min_size=1, max_size=2))
    }
    names = st.one_of(of("searched"), of("searched"), of("searched"), known_keys(known), st.just(CODE))
    odd = st.lists(names, min_size=1, max_size=1)
    for key in draw(st.one_of(st.just([]), st.just([]), odd)):
        kind = draw(st.sampled_from(_KINDS))
        options = st.lists(value_of(key, known), min_size=1, max_size=2) if kind == "choice" else st.nothing()
        values = draw(st.one_of(*[options] * 6, st.lists(of("bounds"), min_size=2, max_size=3), of("values")))
        space[key] = draw(st.sampled_from([{kind: values}] * 16 + [values, {kind: values, "choice": [1]}, {}, kind]))
    return space


_SCHEDULERS = ["none", "asha", "median", "pbt", "ASHA", "hyperband", 5, None, {}, {"name": "asha", "grace": 0}]
_SCHEDULERS += [{"name": "pbt", "share": 2}, {"name": "pbt", "interval": 2}, {"name": "median", "others": 1e308}]
_PARTS = [
    "space",
    "search",
    "scheduler",
    "trials",
    "seed",
    "resources",
    "max_concurrent",
    "max_failures",
    "repeat",
    "nobody",
]
_RESOURCES = [{"cpu": 0}, {"cpu": 1e308}, {"cpu": float("nan")}, {"gpu": float("inf")}, {"nobody": 1}, {"cpu": 1}]


@st.composite
def sweep_files(draw: st.DrawFn, known: dict[str, Any]) -> dict[Any, Any]:
    """What a sweep file holds; most are right but for a key of the space."""
    sweep: dict[Any, Any] = {"space": draw(spaces(known))}
    legal = [{}, {}, {"trials": 2}, {"search": "grid"}, {"search": "optuna"}, {"seed": 1}, {"repeat": True}]
    sweep |= draw(st.sampled_from([*legal * 3, *({"scheduler": scheduler} for scheduler in _SCHEDULERS)]))
    if draw(st.integers(0, 11)) == 7:
        sweep[draw(st.sampled_from([*_PARTS, 5, None]))] = draw(st.one_of(of("values"), st.sampled_from(_RESOURCES)))
    return sweep


@st.composite
def sweep_lines(draw: st.DrawFn) -> bytes:
    """RecBole's hyper.test, with at most two odd lines."""
    right = ["learning_rate loguniform -8,0", "kd_temperature uniform 1,2", "kd_weight quniform 1,2,1", "# nothing"]
    lines = draw(st.lists(st.sampled_from(right), min_size=1, max_size=3, unique=True))
    lines += draw(st.one_of(st.just([]), st.lists(of("lines"), max_size=2)))
    return "\n".join(lines).encode()


_COMPARED = {"compare": "none,mean", "models": "SASRec,BPR", "datasets": "d", "seeds": "1,2"}
_KIND = {"compare": "compared", "models": "students", "datasets": "datasets", "seeds": "seeds"}


@st.composite
def comparisons(draw: st.DrawFn) -> list[str]:
    """The options of a comparison, of which at most two are odd."""
    odd = draw(st.sets(st.sampled_from(sorted(_COMPARED)), max_size=2))
    options = [f"--{key}={draw(of(_KIND[key])) if key in odd else value}" for key, value in _COMPARED.items()]
    jobs = draw(st.sampled_from([None] * 6 + ["-1", "0", "2"]))
    return options + ([] if jobs is None else [f"--compare_jobs={jobs}"])
