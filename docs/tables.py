"""Tables of the documentation that are made from the code and its YAML files while the site is built (a MkDocs hook).

A page holds a line such as `<!-- keys -->`; `on_page_markdown` puts the table in its place. The files are read, not
imported, so that the site is built in seconds.
"""

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PROPERTIES = ROOT / "properties"
TEACHERS = ("UniSRec", "Recformer", "UniM2Rec", "Vectors")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with each table in its place (the hook that MkDocs calls)."""
    for name, make in TABLES.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", make())
    return markdown


def keys() -> str:
    """Every key of properties/kd.yaml, under the headings of that file."""
    text = (PROPERTIES / "kd.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(text)
    parts = []
    for line in text.splitlines():
        if heading := re.fullmatch(r"# (.+?) -{3,}", line):
            parts.append(f"\n### {heading[1]}\n\n| key | default | type and values | meaning |\n|---|---|---|---|")
        elif (key := line.removesuffix(":")) in table:
            parts.append(_key_row(key, table[key]))
    return "\n".join(parts)


def presets() -> str:
    """What each value of `kd` sets, from properties/preset/."""
    names = yaml.safe_load((PROPERTIES / "kd.yaml").read_text(encoding="utf-8"))["kd"]["choices"]
    rows = []
    for name in names:
        file = PROPERTIES / "preset" / f"{name}.yaml"
        comment, settings = _commented(file) if file.is_file() else (_WITHOUT_FILE[name], {})
        rows.append([f"`{name}`", comment, ", ".join(f"`{key}={_shown(value)}`" for key, value in settings.items())])
    return _table(["`kd`", "what it is", "what it sets"], rows)


def teacher_keys() -> str:
    """The settings of each teacher, for fine-tuning and for pre-training."""
    parts = []
    ranges = yaml.safe_load((PROPERTIES / "ranges.yaml").read_text(encoding="utf-8"))
    for teacher in TEACHERS:
        for stage, what in (("model", "fine-tuning"), ("pretrain", "pre-training")):
            file = PROPERTIES / stage / f"{teacher}.yaml"
            if file.is_file():
                parts.append(f"\n### {teacher}, {what}\n\n" + _teacher_table(file, ranges))
    return "\n".join(parts)


def options() -> str:
    """The options of run_recbole_prmkd.py, from its calls of `add_argument`."""
    rows = []
    for call in ast.walk(ast.parse((ROOT / "run_recbole_prmkd.py").read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
            given = {keyword.arg: ast.unparse(keyword.value).strip("'\"") for keyword in call.keywords}
            names = ", ".join(f"`{ast.literal_eval(name)}`" for name in call.args)
            default = "" if given.get("default") in (None, "None") else f"`{given['default']}`"
            rows.append([names, default, given.get("help", "")])
    return _table(["option", "default", "meaning"], rows)


def result() -> str:
    """The fields of result.json, from the pydantic models that write it."""
    source = ast.parse((ROOT / "recbole_prmkd" / "results" / "result.py").read_text(encoding="utf-8"))
    models = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    parts = []
    for name, where in _PARTS_OF_RESULT.items():
        about = " ".join((ast.get_docstring(models[name]) or "").split())
        rows = [_field_row(field) for field in _fields(name, models)]
        parts.append(f"\n### {where}\n\n{about}\n\n" + _table(["field", "type", "meaning"], rows))
    return "\n".join(parts)


TABLES = {"keys": keys, "presets": presets, "teacher keys": teacher_keys, "options": options, "result": result}

_WITHOUT_FILE = {
    "none": "RecBole alone: the same metrics and weights, bit for bit.",
    "ensemble": "No student: the mean of the teachers' normalised scores is ranked, at the cost of serving them all.",
}
_PARTS_OF_RESULT = {
    "RunResult": "The file",
    "StudentResult": "`student`",
    "TeacherResult": "`teachers.<name>`",
    "StepResult": "`steps.<step>`",
}


def _key_row(key: str, entry: dict[str, Any]) -> str:
    values = entry["type"]
    if "choices" in entry:
        values = "one of " + ", ".join(f"`{choice}`" for choice in entry["choices"])
    elif "range" in entry:
        values += f" in `{entry['range']}`"
    values += ", or `None`" if entry.get("optional") else ""
    return f"| `{key}` | `{_shown(entry['default'])}` | {_cell(values)} | {_cell(entry['meaning'])} |"


def _teacher_table(file: Path, ranges: dict[str, str]) -> str:
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"(\w+): *(.*?) *# \((\w+)\) (.*)", line):
            key, value, kind, meaning = match.groups()
            kind += f" in `{ranges[key]}`" if key in ranges else ""
            rows.append([f"`{key}`", f"`{_shown(yaml.safe_load(value))}`", kind, meaning])
    return _table(["key", "default", "type", "meaning"], rows)


def _commented(file: Path) -> tuple[str, dict[str, Any]]:
    """A YAML file's leading comment, and its content."""
    text = file.read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    return comment, yaml.safe_load(text) or {}


def _fields(name: str, models: dict[str, ast.ClassDef]) -> list[ast.AnnAssign]:
    """The annotated fields of a model and of its bases in the same file, the model's own first."""
    node = models[name]
    own = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id in models]
    return [*own, *(field for base in bases for field in _fields(base, models))]


def _field_row(field: ast.AnnAssign) -> list[str]:
    given: dict[str, str] = {}
    if isinstance(field.value, ast.Call):
        constants = [word for word in field.value.keywords if isinstance(word.value, ast.Constant)]
        given = {str(word.arg): str(word.value.value) for word in constants if isinstance(word.value, ast.Constant)}
    name = given.get("alias", ast.unparse(field.target))
    return [f"`{name}`", f"`{ast.unparse(field.annotation)}`", given.get("description", "")]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)


def _cell(text: str) -> str:
    """Text for a table's cell; words in angle brackets are no HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
