"""`kd_teachers: auto`: the teachers that a data set gets, by what it has and what the device can pay.

Linear always; Content and UniSRec where there is text, Recformer where its training fits `kd_teacher_minutes` too,
UniM2Rec where there are pictures as well. Rates are rough: those of a CPU core were measured, those of a GPU are
guesses. Our choice.
"""

import os
from pathlib import Path

from recbole.config import Config

from recbole_prmkd.data.encoder import encoder_folder
from recbole_prmkd.data.encoder_layout import averages_words
from recbole_prmkd.data.static_encoder import STATIC
from recbole_prmkd.data.text import item_file, text_fields
from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.content import Content
from recbole_prmkd.teachers.linear import Linear
from recbole_prmkd.teachers.recformer import Recformer
from recbole_prmkd.teachers.unim2rec import UniM2Rec
from recbole_prmkd.teachers.unisrec import UniSRec

AUTO = "auto"
MINUTES = 5.0  # for each teacher, where the user has not said

_TOKENS_PER_SECOND = 4000, 800_000  # of all-MiniLM-L6-v2: a CPU core, a GPU
_WORDS = 100  # how much faster word vectors are
_BYTES_PER_TOKEN, _EXTRA_TOKENS = 4, 3  # of English, and those that each text has beside its own
_RECFORMER_ROWS_PER_SECOND = 3, 400  # training examples: a CPU core, a GPU
_RECFORMER_EPOCHS = 5


def choose_teachers(config: Config) -> tuple[list[str], list[str]]:
    """Names for `kd_teachers`, and one line each on why a teacher is there, or is not.

    Raises:
        UserError: the user has set a key of the text, and it cannot be used.
    """
    names, why = [Linear.__name__], ["Linear: learns from the interactions alone, in closed form."]
    missing = missing_text(config)
    if missing is not None:
        why.append(f"no Content, UniSRec, Recformer or UniM2Rec, so Linear is the only teacher: {missing}")
        return names, why
    gpu = config["device"].type == "cuda"
    minutes = _minutes(config)
    limit = f"about {{}} minutes here (a rough estimate), and kd_teacher_minutes is {minutes:g}."
    items, encoding = _encoding(config, gpu)
    static = averages_words(encoder_folder(config["kd_text_encoder"]))
    if static:
        encoding /= _WORDS
    if encoding > minutes:
        faster = "" if static else f" kd_text_encoder={STATIC} is {_WORDS} times as fast."
        why.append(
            "no Content, UniSRec, Recformer or UniM2Rec, so Linear is the only teacher: to encode "
            f"{items} texts takes {limit.format(_rounded(encoding))}{faster}"
        )
        return names, why
    names += [Content.__name__, UniSRec.__name__]
    why += [
        "Content: compares the items' texts, without training.",
        "UniSRec: learns what follows from the items' text.",
    ]
    training = _RECFORMER_EPOCHS * _interactions(config) / _rate(_RECFORMER_ROWS_PER_SECOND, gpu) / 60
    if static:
        why.append("no Recformer: kd_text_encoder has word vectors, and Recformer starts from a transformer.")
    elif training > minutes:
        why.append(f"no Recformer: training takes {limit.format(_rounded(training))}")
    else:
        names.append(Recformer.__name__)
        why.append("Recformer: reads the items' text word by word.")
    if config["kd_item_images"]:
        names.append(UniM2Rec.__name__)
        why.append("UniM2Rec: reads the items' text and pictures.")
    return names, why


def missing_text(config: Config) -> str | None:
    """Why there is no text to read, or None."""
    try:
        text_fields(config)
        encoder_folder(config["kd_text_encoder"])
    except UserError as error:
        if any(key.startswith("kd_text") for key in config.external_config_dict):
            raise
        return str(error)
    return None


def _minutes(config: Config) -> float:
    return MINUTES if config["kd_teacher_minutes"] == "auto" else config["kd_teacher_minutes"] or float("inf")


def _rounded(minutes: float) -> str:
    return f"{minutes:.0f}" if minutes >= 10 else f"{minutes:.1f}"


def _encoding(config: Config, gpu: bool) -> tuple[int, float]:
    """How many texts there are, and the minutes that a transformer takes for them; from the size of their file."""
    file = item_file(config)
    items = _lines(file)
    size = file.stat().st_size if file.is_file() else 0
    tokens = min(size / _BYTES_PER_TOKEN + _EXTRA_TOKENS * items, config["kd_text_max_tokens"] * items)
    return items, tokens / _rate(_TOKENS_PER_SECOND, gpu) / 60


def _rate(per_second: tuple[int, int], gpu: bool) -> float:
    return per_second[1] if gpu else per_second[0] * max(1, os.cpu_count() or 1)


def _interactions(config: Config) -> int:
    data = Path(config["data_path"])
    parts = [f".{name}.inter" for name in config["benchmark_filename"] or []] or [".inter"]
    return sum(_lines(data / f"{config['dataset']}{part}") for part in parts)


def _lines(file: Path) -> int:
    """Lines below the header; 0 where there is no file, which the checks refuse later."""
    if not file.is_file():
        return 0
    with file.open("rb") as lines:
        return max(0, sum(block.count(b"\n") for block in iter(lambda: lines.read(1 << 20), b"")) - 1)
