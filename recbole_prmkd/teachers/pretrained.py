"""A pre-trained teacher on disk: `<Teacher>.safetensors` and, beside it, its card `<Teacher>.json`.

The card says what the weights were made from (data sets with hashes, text encoder, settings, versions) and carries
the hash of the file, and its own. Fine-tuning starts from `kd_<teacher>_checkpoint`, or else from the file of the
teacher's kind that lies in `kd_teacher_dir`; `kd_<teacher>_checkpoint=scratch` starts from neither. `shipped` is a file
that comes with this package (docs/shipped-weights.md); `kd_teachers=auto` starts from it where it fits.
"""

from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.config import Config
from safetensors.torch import save_file
from torch import Tensor

from recbole_prmkd.data.encoder import encoder_digest, encoder_folder
from recbole_prmkd.data.processed import READY
from recbole_prmkd.data.text import has_ready_vectors
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import SCRATCH, SHIPPED, kind_of
from recbole_prmkd.storage import store
from recbole_prmkd.storage.disk import replacing
from recbole_prmkd.storage.json_files import read_json, read_sealed, write_sealed
from recbole_prmkd.teachers.base import Teacher

SCHEMA = "recbole_prmkd/pretrained/2"
SHIPPED_FOLDER = Path(__file__).parent / "weights"
_SHAPES = ("n_layers", "n_heads", "hidden_size", "inner_size", "n_exps", "max_item_list_length")  # of a shipped file
_FORMER = "recbole_prmkd/pretrained/1"  # without a checksum of the card; still read
_SIGNS = ((b"recbole_prmkd/pretrained",), (b'"sha256"', b'"text_encoder"'))  # a flipped bit leaves the one or the other


def weights_file(folder: Path, teacher: str) -> Path:
    """Where a pre-trained teacher lies."""
    return folder / f"{teacher}.safetensors"


def write(folder: Path, teacher: str, weights: Mapping[str, Tensor], card: Mapping[str, Any]) -> None:
    """Write both files; the card, which makes the other valid, last.

    Raises:
        UserError: they cannot be written (full disk, no permission).
    """
    file = weights_file(folder, teacher)
    with replacing(file) as part:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}, part)
    content = {"schema": SCHEMA, "teacher": teacher, "sha256": store.file_digest(file), **card}
    write_sealed(file.with_suffix(".json"), content)


def read_card(file: Path) -> dict[str, Any] | None:
    """The card of a weights file; None where it has none of this kind.

    Raises:
        UserError: the card is damaged, or belongs to other weights.
    """
    path = file.with_suffix(".json")
    try:
        text = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise UserError(f"Cannot read {path}, the card of {file}: {error}.") from error
    if not any(all(sign in text for sign in signs) for signs in _SIGNS):
        return None
    try:
        card = read_json(path)
        if card["schema"] != _FORMER:
            card = read_sealed(path)
        if card["schema"] not in (SCHEMA, _FORMER):
            raise ValueError(f"its schema is {card['schema']}, this version reads {SCHEMA}")
        digest, *_ = card["sha256"], card["teacher"], card["text_encoder"]["name"], card["text_encoder"]["digest"]
        _ = [entry["name"] for entry in card["datasets"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}, the card of {file}, is damaged ({error}): pre-train the teacher again, or remove the card."
        ) from error
    if digest != store.file_digest(file):
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
    if given == SHIPPED:
        file = weights_file(SHIPPED_FOLDER, kind)
    if not file.is_file():
        if given == SHIPPED:
            have = ", ".join(sorted(each.stem for each in SHIPPED_FOLDER.glob("*.safetensors")))
            raise UserError(f"No weights of {kind} come with this package, only of {have}: name a file, or scratch.")
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


def start(model: Teacher, name: str, config: Config) -> Path | None:
    """Put the weights of the run's checkpoint into the teacher, if it has one; returns that file."""
    found = checkpoint_of(name, config)
    if found is None:
        return None
    file, card = found
    try:
        model.load_checkpoint(file)
    except UserError as error:
        if config[f"kd_{name}_checkpoint".lower()]:
            raise
        raise UserError(
            f"{error} (It lies in kd_teacher_dir: --kd_{name.lower()}_checkpoint={SCRATCH} starts without it.)"
        ) from error
    made = f", pre-trained on {', '.join(entry['name'] for entry in card['datasets'])}" if card else ""
    getLogger().info(f"{name} starts from {file}{made}.")
    return file


def start_from_shipped(config: Config) -> list[str]:
    """Let teachers that `kd_teachers=auto` has chosen start from the package's own files; one line for each file.

    Not where the user has named another start or other sizes, has a file in `kd_teacher_dir`, or reads texts by another
    encoder.
    """
    lines = []
    for name in config["kd_teachers"]:
        file, key = weights_file(SHIPPED_FOLDER, name), f"kd_{name}_checkpoint".lower()
        own_sizes = [f"kd_{name}_{size}".lower() in config.external_config_dict for size in _SHAPES]
        own_file = weights_file(Path(config["kd_teacher_dir"]), name).is_file()
        if not file.is_file() or config[key] or own_file or any(own_sizes):
            continue
        card = read_card(file)
        if card is not None and card["text_encoder"]["digest"] == text_encoder(config)["digest"]:
            config[key] = SHIPPED
            made_from = ", ".join(entry["name"] for entry in card["datasets"])
            lines.append(f"{name}: starts from the weights of this package, pre-trained on {made_from}.")
    return lines
