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
PACKAGE = ROOT / "recbole_prmkd"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with each table in its place (the hook that MkDocs calls)."""
    for name, make in TABLES.items():
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", make())
    if left := re.search(r"^<!-- (.*) -->$", markdown, re.MULTILINE):
        raise ValueError(f"docs/tables.py makes no table {left[1]!r}.")
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
    for teacher in [*_teachers(), "RecBole"]:
        for stage, what in (("model", "fine-tuning"), ("pretrain", "pre-training")):
            file = PROPERTIES / stage / f"{teacher}.yaml"
            if file.is_file():
                parts.append(f"\n### {teacher}, {what}\n\n" + _teacher_table(file, ranges))
    return "\n".join(parts)


def options() -> str:
    """The options of run_recbole_prmkd.py, from its calls of `add_argument`."""
    return _options(ROOT / "run_recbole_prmkd.py")


def serving_options() -> str:
    """The options of --recommend and --export."""
    return _options(PACKAGE / "serving" / "command.py")


def _options(file: Path) -> str:
    rows = []
    for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument":
            given = {keyword.arg: ast.unparse(keyword.value).strip("'\"") for keyword in call.keywords}
            names = ", ".join(f"`{ast.literal_eval(name)}`" for name in call.args)
            default = "" if given.get("default") in (None, "None") else f"`{given['default']}`"
            rows.append([names, default, given.get("help", "")])
    return _table(["option", "default", "meaning"], rows)


def result() -> str:
    """The fields of result.json, from the pydantic models that write it."""
    source = ast.parse((PACKAGE / "results" / "schema.py").read_text(encoding="utf-8"))
    models = {node.name: node for node in source.body if isinstance(node, ast.ClassDef)}
    parts = []
    for name, where in _PARTS_OF_RESULT.items():
        about = " ".join((ast.get_docstring(models[name]) or "").split())
        rows = [_field_row(field) for field in _fields(name, models)]
        parts.append(f"\n### {where}\n\n{about}\n\n" + _table(["field", "type", "meaning"], rows))
    return "\n".join(parts)


def messages() -> str:
    """Every message of a UserError, by the folder that raises it; what a run fills in stands in angle brackets."""
    parts = []
    for title, where in _ROOMS.items():
        found = {}
        for file in sorted(file for pattern in where for file in ROOT.glob(pattern)):
            for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "UserError" and call.args:
                    found[_template(call.args[0])] = None
        texts = sorted(text for text in found if len(re.sub(r"<\w+>|\W", "", text)) > 3)
        parts.append(f"\n### {title}\n\n" + "\n".join(f"- {_plain(text)}" for text in texts))
    return "\n".join(parts)


TABLES = {
    "keys": keys,
    "presets": presets,
    "teacher keys": teacher_keys,
    "options": options,
    "serving options": serving_options,
    "result": result,
    "messages": messages,
}

_WITHOUT_FILE = {
    "none": "RecBole alone: the same metrics and weights, bit for bit.",
    "ensemble": "No student: the mean of the teachers' normalised scores is ranked, at the cost of serving them all.",
}
_NO_NAMES = {
    "r",
    "join",
    "lower",
    "strip",
    "split",
    "splitlines",
    "pop",
    "str",
    "config",
    "f",
    "g",
    "in",
    "for",
    "if",
    "s",
    "name__",
}
_ROOMS = {
    "Command line and settings": ["run_recbole_prmkd.py", "recbole_prmkd/recbole_host/*.py", "recbole_prmkd/*.py"],
    "Data, text and images": ["recbole_prmkd/data/*.py"],
    "Teachers and checkpoints": ["recbole_prmkd/teachers/*.py"],
    "Student and distillation": ["recbole_prmkd/students/*.py", "recbole_prmkd/distil/**/*.py"],
    "Stored folders and results": ["recbole_prmkd/teacher_cache/*.py", "recbole_prmkd/results/*.py"],
    "Trained students": ["recbole_prmkd/serving/*.py"],
    "Comparisons": ["recbole_prmkd/compare/*.py"],
    "Sweeps and Ray": ["recbole_prmkd/tune/*.py"],
}
_PARTS_OF_RESULT = {
    "RunResult": "The file",
    "StudentResult": "`student`",
    "KDResult": "`student.kd`",
    "CarriedOver": "`student.carried_over`",
    "TeacherResult": "`teachers.<name>`",
    "GuardResult": "`guard`",
    "StepResult": "`steps.<step>`",
}


def _teachers() -> list[str]:
    """The names in `TEACHERS`, in its order."""
    for node in ast.parse((PACKAGE / "teachers" / "__init__.py").read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.AnnAssign)
            and ast.unparse(node.target) == "TEACHERS"
            and isinstance(node.value, ast.Dict)
        ):
            return [ast.literal_eval(key) for key in node.value.keys if key]
    raise ValueError("teachers/__init__.py has no table TEACHERS.")


def _template(message: ast.expr) -> str:
    """The text of a message; what a run fills in becomes <name>."""
    if isinstance(message, ast.JoinedStr):
        return " ".join("".join(map(_template, message.values)).split())
    if isinstance(message, ast.Constant):
        return str(message.value)
    names = re.findall(r"[a-z][a-z_]*", ast.unparse(message))
    return f"<{next((name for name in reversed(names) if name not in _NO_NAMES), 'value')}>"


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
    """Text for a table's cell."""
    return _plain(" ".join(text.split())).replace("|", "\\|")


def _plain(text: str) -> str:
    """Text whose signs mean nothing to Markdown or HTML; what stands between backticks stays as it is."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([_*\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _table(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
