"""A pre-trained teacher on disk: `<Teacher>.safetensors` and, beside it, its card `<Teacher>.json`.

The card says what the weights were made from (data sets with hashes, text encoder, settings, versions) and carries
the hash of the file. Fine-tuning starts from `kd_<teacher>_checkpoint`, or else from the file of the teacher's kind
that lies in `kd_teacher_dir`; `kd_<teacher>_checkpoint=scratch` starts from neither.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole.config import Config
from safetensors.torch import save_file
from torch import Tensor

from recbole_prmkd.data.encoder import encoder_digest, encoder_folder
from recbole_prmkd.data.processed import READY
from recbole_prmkd.data.text import has_ready_vectors
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import SCRATCH, kind_of
from recbole_prmkd.storage import store

SCHEMA = "recbole_prmkd/pretrained/1"


def weights_file(folder: Path, teacher: str) -> Path:
    """Where a pre-trained teacher lies."""
    return folder / f"{teacher}.safetensors"


def write(folder: Path, teacher: str, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write both files; the card, which makes the other valid, last."""
    file = weights_file(folder, teacher)
    part = file.with_name(f".part-{file.name}-{os.getpid()}")
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}, part)
    os.replace(part, file)
    content = {"schema": SCHEMA, "teacher": teacher, "sha256": store.file_digest(file), **card}
    store.write_json(file.with_suffix(".json"), content)


def read_card(file: Path) -> dict[str, Any] | None:
    """The card of a weights file; None where it has none of this kind.

    Raises:
        UserError: the card belongs to other weights.
    """
    path = file.with_suffix(".json")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(card, dict) or card.get("schema") != SCHEMA:
        return None
    if card["sha256"] != store.file_digest(file):
        raise UserError(f"{file} is not the file that {path} describes: pre-train it again, or remove the card.")
    return card


def text_encoder(config: Config) -> dict[str, str]:
    """What made the data set's text vectors, as a card names it."""
    if has_ready_vectors(config):
        return {"name": READY, "digest": READY}
    name = config["kd_text_encoder"]
    return {"name": name, "digest": encoder_digest(encoder_folder(name))}


def checkpoint_of(teacher: str, config: Config) -> tuple[Path, dict[str, Any] | None] | None:
    """The file that this run starts the teacher from, with its card if it has one, or None: from scratch.

    Raises:
        UserError: there is no such file, or its card names another teacher or text encoder.
    """
    kind = kind_of(teacher)
    given = config[f"kd_{teacher}_checkpoint".lower()]
    if given == SCRATCH:
        return None
    file = Path(given) if given else weights_file(Path(config["kd_teacher_dir"]), kind)
    if not file.is_file():
        if given:
            raise UserError(f"There is no checkpoint {given!r}: check --kd_{teacher.lower()}_checkpoint.")
        return None
    card = read_card(file)
    if card is None:
        return file, None
    if card["teacher"] != kind:
        raise UserError(f"{file} holds a pre-trained {card['teacher']}, not {kind}: name another checkpoint.")
    if card["text_encoder"]["digest"] != text_encoder(config)["digest"]:  # one encoder may have several names
        raise UserError(
            f"{file} was pre-trained with text encoder {card['text_encoder']['name']}: use it here too, by "
            "--kd_text_encoder."
        )
    return file, card
