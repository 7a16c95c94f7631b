"""What a setting's text means. No text is executed: RecBole's own reading hands each to Python's `eval`.

`compat` puts `converted` in the place of RecBole's method, so that it holds for every Config of the process: the
student's, the teachers', those of sweeps and comparisons.
"""

import ast
import re
from functools import cache
from typing import Any

from recbole_prmkd.recbole_host import keys

# Settings that are texts whatever they look like: `kd_output_dir=0x10` names the folder 0x10.
_TEXT = re.compile(
    r"data_path|checkpoint_dir|dataset(_save_path)?|dataloaders_save_path|pre_model_path|encoding|model|\w+_inter_num_interval"
    r"|[A-Z]+(_[A-Z]+)*_FIELD|kd_\w+_checkpoint|kd_vectors_(\w+_)?(items|users|rows)"
)
_WORD = re.compile(r"""'[^']*'|"[^"]*"|[^\s\[\](){},:'"][^\[\](){},:'"]*""")  # in a list: quoted, or bare
_SPOKEN = {"true": "True", "false": "False"}
_NOT_LITERAL = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)
_UNREAD = object()


def converted(config: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Every text among the settings as its value, in place; what `Config._convert_config_dict` is for."""
    for key, value in settings.items():
        if isinstance(value, str):
            settings[key] = _text(value) if _is_text(key) else _value(value)
    return settings


def _value(text: str) -> Any:
    """A Python literal, true or false in any case, a list or dict whose quotes a shell took; else the text itself."""
    if text.lower() in _SPOKEN:
        return text.lower() == "true"
    value = _literal(text)
    if value is _UNREAD and text.strip()[:1] + text.strip()[-1:] in ("[]", "()", "{}"):
        value = _literal(_WORD.sub(_quoted, text))
    return value if value is None or isinstance(value, str | int | float | list | tuple | dict) else text


def _text(text: str) -> str | None:
    """The text, without quotes that are part of it; None where it is None."""
    value = _literal(text)
    return value if value is None or isinstance(value, str) else text


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except _NOT_LITERAL:
        return _UNREAD


def _quoted(match: re.Match[str]) -> str:
    word = match[0].strip()
    word = _SPOKEN.get(word.lower(), word)
    return word if _literal(word) is not _UNREAD else repr(word)


@cache
def _is_text(key: Any) -> bool:
    if not isinstance(key, str):
        return False
    kind = keys.key_table().get(key, {}).get("type")
    return kind in ("path", "str") or _TEXT.fullmatch(key) is not None
