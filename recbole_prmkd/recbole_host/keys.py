"""The kd_ keys: read from `properties/kd.yaml` once, checked strictly. A wrong key or value stops the run.

`properties/kd.yaml` is the one place that holds each key's default, type, range and meaning.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import plugins
from recbole_prmkd.recbole_host.host_properties import host_properties, hosts, is_host

# Real numbers of which RecBole's default is a whole one, such as DCN's reg_weight.
REAL = re.compile(r"(weight|ratio|w_max|w_min|resolution)$")
WITHOUT_TEACHERS = ("label_smoothing", "mean_teacher")  # each `kd` whose only teacher is Uniform, which knows nothing
WARM_START = "warm_start"  # the `kd` of the student alone, started from text
_MANY = 40  # words that a sentence does not list
# As kd_<teacher>_checkpoint: from scratch, even if kd_teacher_dir holds a file; from the package's own file.
SCRATCH, SHIPPED = "scratch", "shipped"


def properties_dir() -> Path:
    """Folder of the properties: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "properties"
    return inside if inside.is_dir() else package.parent / "properties"


def read_yaml(path: Path) -> dict[str, Any]:
    """One flat properties file as a dict."""
    with path.open(encoding="utf-8") as file:
        return yaml.safe_load(file) or {}


@cache
def key_table() -> dict[str, dict[str, Any]]:
    """Key -> its default, type, range or choices, and meaning; KD methods of other packages are among the choices.

    Raises:
        UserError: another package's method has the name of one of ours.
    """
    table = read_yaml(properties_dir() / "kd.yaml")
    for name, entry in plugins.found().items():
        if name in table["kd"]["choices"] or name in table["kd_loss"]["choices"]:
            raise UserError(
                f"The package {plugins.package(entry)} has a KD method {name}, which is the name of one of ours: "
                "rename it there."
            )
    for key in ("kd", "kd_loss"):
        table[key]["choices"] += list(plugins.found())
    return table


def defaults() -> dict[str, Any]:
    """Key -> default, for every kd_ key."""
    return {key: entry["default"] for key, entry in key_table().items()}


def preset(kd: str) -> dict[str, Any]:
    """What `kd: <name>` sets beyond the defaults; empty for `none`."""
    if kd in plugins.found():
        return {"kd_loss": kd, **getattr(plugins.load(kd), "preset", {})}
    path = properties_dir() / "preset" / f"{kd}.yaml"
    return read_yaml(path) if path.is_file() else {}


def has_teachers(settings: Any) -> bool:
    """Whether this `kd` asks for teachers; settings: a mapping or a Config, with the defaults."""
    return settings["kd"] not in ("none", WARM_START)


def ranks_all_alike(settings: Any) -> bool:
    """Whether `kd_protocol` is or means `ranking`; settings: of a mapping or a Config, with the defaults."""
    protocol = settings["kd_protocol"]
    return bool(protocol == "ranking" or (protocol == "auto" and settings["kd"] != "none"))


def kind_of(teacher: str) -> str:
    """What kind of teacher a name in kd_teachers is of: UniSRec for `UniSRec`, and for `UniSRec_text`."""
    return teacher.partition("_")[0]


def keys_of_teachers(settings: Iterable[str], kinds: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The keys of a teacher among these, each with that teacher and its kind's own key.

    kd_<kind>_<key> is a key of the teacher `<Kind>`, kd_<kind>_<word>_<key> of the further one `<Kind>_<word>`.
    """
    given = list(settings)
    proper = {kind.lower(): kind for kind in [*kinds, *_hosts_in(given)]}
    own = _teacher_keys(tuple(proper.values()))
    pattern = re.compile(rf"(kd_({'|'.join(proper)})_)([a-z0-9]+)_(\w+)")
    found = {}
    for key in given:
        if key in own:
            found[key] = proper[key.split("_")[1]], key
        elif (match := pattern.fullmatch(key)) and match[1] + match[4] in own:
            found[key] = f"{proper[match[2]]}_{match[3]}", match[1] + match[4]
    return found


def _hosts_in(settings: Iterable[str]) -> list[str]:
    """The models of RecBole that keys such as kd_lightgcn_n_layers are of."""
    words = {key.split("_")[1] for key in settings if key.startswith("kd_") and key not in key_table()}
    return [hosts()[word] for word in sorted(words & hosts().keys())]


@cache
def _properties(kind: str) -> dict[str, Any]:
    """A kind's own keys with their defaults; of a model of RecBole, its properties and those of training."""
    folder = properties_dir() / "model"
    return (
        read_yaml(folder / "RecBole.yaml") | host_properties(kind)
        if is_host(kind)
        else read_yaml(folder / f"{kind}.yaml")
    )


def teacher_settings(teacher: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's own properties with the user's `kd_<teacher>_<key>` put in."""
    merged = dict(_properties(kind_of(teacher)))
    for key in merged:
        given = f"kd_{teacher}_{key}".lower()
        if given in settings:
            merged[key] = settings[given]
    return merged


def teacher_seed(teacher: str, settings: Mapping[str, Any]) -> int:
    """Seed of the teacher's fine-tuning: its own, or that of all teachers."""
    own = settings.get(f"kd_{teacher}_seed".lower())
    return settings["kd_teacher_seed"] if own is None else own


def pretraining_properties(teacher: str) -> dict[str, Any]:
    """The teacher's own properties when it is pre-trained."""
    folder = properties_dir()
    return {
        **read_yaml(folder / "model" / f"{teacher}.yaml"),
        **read_yaml(folder / "pretrain" / f"{teacher}.yaml"),
    }


def checked(settings: Mapping[str, Any], teachers: Iterable[str]) -> dict[str, Any]:
    """The kd_ settings among `settings`, each with its own type.

    Args:
        settings: what the user has set, kd_ keys and others.
        teachers: names in the table of teachers.
    Raises:
        UserError: unknown key (names the nearest key), wrong type, out of range, unknown teacher.
    """
    names = list(teachers)
    named = as_list(settings.get("kd_teachers")) or []
    kinds = dict.fromkeys([*names, *_hosts_in(settings), *filter(is_host, map(kind_of, named))])
    allowed = {**key_table(), **_teacher_keys(tuple(kinds))}
    for key, (teacher, of_kind) in keys_of_teachers(settings, names).items():
        _check_name(teacher, names, f"of {key}")
        allowed[key] = allowed[of_kind]
    result = {}
    for key, value in settings.items():
        if key != "kd" and not key.lower().startswith("kd_"):
            continue
        if key not in allowed:
            raise UserError(f"Unknown key {key!r}: {nearest(key, allowed)}.")
        result[key] = _value(key, value, allowed[key])
    chosen = result.get("kd_teachers", [])
    for teacher in chosen if chosen != ["auto"] else []:
        _check_name(teacher, names, "in kd_teachers")
    start = result.get("kd_item_init", "none")
    if start not in ("none", "auto", "text"):
        if kind_of(start) not in names:
            starts = ", ".join(["none", "auto", "text", *names])
            raise UserError(f"kd_item_init = {start!r} is not allowed: use one of {starts}.")
        _check_name(start, names, "in kd_item_init")
    if "kd_teachers" in result and len(set(result["kd_teachers"])) != len(result["kd_teachers"]):
        raise UserError(
            f"kd_teachers names a teacher twice: {result['kd_teachers']}; name each once, and a further one of its "
            "kind, with settings of its own, <Teacher>_<word>."
        )
    return result


def _check_name(teacher: str, kinds: Sequence[str], where: str) -> None:
    """Refuse a teacher whose kind is unknown, or whose keys would be those of another teacher too."""
    kind, _, word = teacher.partition("_")
    if kind not in kinds and not is_host(kind):
        known = list(kinds)
        if difflib.get_close_matches(teacher, [*kinds, *hosts().values()], n=1, cutoff=0.5):
            known += hosts().values()
        raise UserError(f"Unknown teacher {teacher!r} {where}: {nearest(teacher, known)}.")
    own = teacher_settings(kind, {})
    if teacher != kind and (not re.fullmatch("[a-z0-9]+", word) or any(f"{word}_{key}" in own for key in own)):
        raise UserError(
            f"Teacher {teacher!r} {where}: a further {kind} is {kind}_<word>, the word of small letters and digits and "
            "no part of the kind's own keys, such as text or 2."
        )


@cache
def _teacher_keys(teachers: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    ranges = read_yaml(properties_dir() / "ranges.yaml")
    for teacher in teachers:
        table[f"kd_{teacher}_checkpoint".lower()] = {"default": None, "type": "path", "optional": True}
        own, entry_of = _properties(teacher), _entry_of_host if is_host(teacher) else _entry_of_teacher
        for key, value in own.items():
            table[f"kd_{teacher}_{key}".lower()] = entry_of(key, value, ranges)
        if "epochs" in own:  # one that is fine-tuned
            entry: dict[str, Any] = {"default": None, "type": "int", "range": "[0,4294967295]", "optional": True}
            table[f"kd_{teacher}_seed".lower()] = entry
    return table


def check_own(teacher: str, settings: Mapping[str, Any]) -> None:
    """Check the settings of a teacher that is itself the model: to pre-train, or in a student's place.

    Raises:
        UserError: wrong type, or out of range.
    """
    folder = properties_dir()
    files = [folder / part / f"{teacher}.yaml" for part in ("model", "pretrain")]
    ranges = read_yaml(folder / "ranges.yaml")
    for key, value in {
        key: value for file in files if file.is_file() for key, value in read_yaml(file).items()
    }.items():
        if key in settings and key != "learning_rate":  # which RecBole checks, and which may be 0
            _value(key, settings[key], _entry_of_teacher(key, value, ranges))


def _entry_of_teacher(key: str, value: Any, ranges: Mapping[str, str]) -> dict[str, Any]:
    """What a key of a teacher's file may be; value: its default there."""
    entry: dict[str, Any] = {"default": value, "type": _type_name(value)}
    if value is None and key != "train_neg_sample_args":  # the files of vectors
        entry |= {"type": "path", "optional": True}
    return entry | ({"range": ranges[key]} if key in ranges else {})


def _entry_of_host(key: str, value: Any, ranges: Mapping[str, str]) -> dict[str, Any]:
    """What a key of a model of RecBole may be: what its default is; a weight or ratio is a number, whole or not."""
    if value is None or key == "train_neg_sample_args":
        return {"default": value, "type": "any"}
    kind = "float" if type(value) is int and REAL.search(key) else _type_name(value)
    numeric = kind in ("int", "float") and key in ranges
    return {"default": value, "type": kind} | ({"range": ranges[key]} if numeric else {})


def _type_name(value: Any) -> str:
    for kind, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "str")):
        if isinstance(value, kind):
            return name
    return "any"


def nearest(word: str, allowed: Iterable[str]) -> str:
    """What to say of an unknown word: the allowed one that it resembles in any case, or all of them if they are few."""
    words = {each.lower(): each for each in sorted(allowed)}
    near = difflib.get_close_matches(word.lower(), words, n=1, cutoff=0.5)
    if near:
        return f"did you mean {words[near[0]]!r}?"
    return f"use one of {', '.join(words.values())}" if len(words) < _MANY else "properties/kd.yaml lists the keys"


def _value(key: str, value: Any, entry: Mapping[str, Any]) -> Any:
    """`value` as the entry's type, or a UserError that names type and range."""
    if value is None and entry.get("optional"):
        return None
    if value is None and "none" in (entry["default"], *entry.get("choices", [])):  # YAML and the command line read None
        return "none"
    if value is False and "off" in entry.get("choices", []):  # YAML reads off so
        return "off"
    if value in ("auto", None) and entry["default"] == "auto":
        return "auto"
    converted = _CONVERTERS[entry["type"]](value)
    if converted is None:
        raise UserError(f"{key} = {value!r} is not {_wanted(entry)}.")
    if "range" in entry and not _in_range(converted, entry["range"]):
        raise UserError(f"{key} = {value!r} is out of range: the range is {entry['range']}.")
    if "choices" in entry and converted not in entry["choices"]:
        raise UserError(f"{key} = {value!r} is not allowed: {nearest(str(value), entry['choices'])}.")
    return converted


def _wanted(entry: Mapping[str, Any]) -> str:
    if "choices" in entry:
        return "one of " + ", ".join(entry["choices"])
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list of names"}
    words["bool_or_list"] = "true, false or a list of names"
    wanted = words.get(entry["type"], "a text") + (f" in {entry['range']}" if "range" in entry else "")
    return f"{wanted}, or auto" if entry["default"] == "auto" else wanted


def as_list(value: Any) -> list[str] | None:
    """A list, or what a shell leaves of one: `[a,b]` and `a,b` are the same."""
    if isinstance(value, str):
        value = [part.strip(" '\"") for part in value.strip("[]() ").split(",")]
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) and part for part in value):
        return None
    return list(value) or None


def _as_number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


_CONVERTERS: dict[str, Any] = {
    "int": lambda value: value if isinstance(value, int) and not isinstance(value, bool) else None,
    "float": _as_number,
    "bool": lambda value: value if isinstance(value, bool) else None,
    "bool_or_list": lambda value: value if isinstance(value, bool) else as_list(value),
    "str": lambda value: value if isinstance(value, str) else None,
    "choice": lambda value: value if isinstance(value, str) else None,
    # RecBole's command line turns a folder named 7 into a number.
    "path": lambda value: str(value) if isinstance(value, str | int) and not isinstance(value, bool) else None,
    "list": as_list,
    "any": lambda value: value,
}


def _in_range(value: float, text: str) -> bool:
    match = re.fullmatch(r"([\[(])(.+),(.+)([\])])", text.replace(" ", ""))
    if match is None:
        raise ValueError(f"properties/kd.yaml holds a malformed range {text!r}")
    left, low, high, right = match.groups()
    above = value >= float(low) if left == "[" else value > float(low)
    below = value <= float(high) if right == "]" else value < float(high)
    return above and below
