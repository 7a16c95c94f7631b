"""Item images by a side channel: ready vectors, or a folder of pictures encoded once; joined by item token.

Two sources, named by `kd_item_images`: an `.npz` file with the arrays `item_id` (strings) and `feat` (one row
per item), or a folder of `<item>.jpg`, `.jpeg` or `.png`, which a `transformers` vision model encodes. Items
without an image are normal: the second thing returned says which items have one.
"""

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from torch import Tensor, nn

from recbole_prmkd.data.encoder import encoder_digest
from recbole_prmkd.data.split import by_domain, in_dataset
from recbole_prmkd.data.vectors_file import check_file, read_file
from recbole_prmkd.errors import UserError
from recbole_prmkd.teacher_cache import encoding_jobs, store

VERSION = "1.0"  # of `encode_images`; raise it when the same pictures and encoder give other vectors
_IDS = ["item_id"]
_SUFFIXES = (".jpg", ".jpeg", ".png")  # an item with several pictures is shown by the first of these
BATCH = 32  # pictures that are encoded at a time


def item_image_vectors(config: Config, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Image vectors of all items of a RecBole data set, and which items have one.

    An item whose vector is zero or not finite counts as one without an image. Row 0 is PAD. The vectors of
    items without an image are zero; without any source they have width 1.

    Returns:
        vectors [n_items, D] float32 and present [n_items] bool, by internal item id.
    Raises:
        UserError: the source cannot be read, or has an image of none of the items.
    """
    parts = [_of_domain(domain, tokens) for domain, tokens in by_domain(config, dataset)]
    width = max(vectors.shape[1] for vectors, _ in parts)
    odd = {vectors.shape[1] for vectors, present in parts if present.any()} - {width}
    if odd:
        raise UserError(f"Image vectors are {width} wide in one data set, {odd.pop()} in another: encode them alike.")
    table = torch.zeros(1 + sum(len(vectors) for vectors, _ in parts), width)
    present = torch.cat([torch.zeros(1, dtype=torch.bool), *(has_one for _, has_one in parts)])
    table[present] = torch.cat([vectors[has_one] for vectors, has_one in parts if has_one.any()] or [table[:0]])
    return table, present


def _of_domain(config: Config, tokens: list[str]) -> tuple[Tensor, Tensor]:
    """Image vectors [N, D] of these items, zero where there is none, and which have one [N]."""
    source = _source(config)
    if source is None:
        getLogger().info(f"{config['dataset']} has no images ({config['kd_item_images'] or 'kd_item_images not set'}).")
        return torch.zeros(len(tokens), 1), torch.zeros(len(tokens), dtype=torch.bool)
    row_of, features = _encoded(source, tokens, config) if source.is_dir() else _read(source)
    items = [i for i, token in enumerate(tokens) if token in row_of]
    if not items:
        raise UserError(
            f"{source} has an image of none of the data set's items: name each image by its token in column "
            f"{config['ITEM_ID_FIELD']!r}."
        )
    rows = [row_of[tokens[i]] for i in items]
    vectors = torch.zeros(len(tokens), features.shape[1])
    vectors[items] = torch.from_numpy(features[rows].astype(np.float32))  # [N, D]
    present = torch.isfinite(vectors).all(dim=1) & (vectors != 0).any(dim=1)  # [N]
    vectors[~present] = 0
    _report(source, len(tokens), len(items), int(present.sum()))
    return vectors, present


def check_images(config: Config) -> None:
    """The cheap checks, before the first expensive step: the source, its arrays' names, the encoder's files.

    Raises:
        UserError: one of them is missing.
    """
    source = _source(config)
    if source is not None and source.is_dir():
        _pictures(source)
        image_encoder_folder(config["kd_image_encoder"])
    elif source is not None:
        check_file(source, _IDS)


def image_encoder_folder(name: str) -> Path:
    """Where the vision model's files lie: a folder, or the hub's local copy.

    Raises:
        UserError: neither has it.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        except Exception as error:  # the hub's client raises a dozen kinds
            raise UserError(
                f"Image encoder {name!r} is neither a folder nor on the hub ({type(error).__name__}): name "
                "a folder with --kd_image_encoder, or ready vectors (.npz) with --kd_item_images."
            ) from error
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder} holds no vision model (config.json and .safetensors): name another folder or hub name "
            "with --kd_image_encoder."
        )
    return folder


def _source(config: Config) -> Path | None:
    """What `kd_item_images` names; None where it is not set, and where `{dataset}` in it leads to nothing."""
    if not config["kd_item_images"]:
        return None
    source = in_dataset(config["kd_item_images"], config)
    if "{dataset}" in config["kd_item_images"] and not source.exists():
        return None
    if not (source.is_dir() or (source.is_file() and source.suffix.lower() == ".npz")):
        state = "is neither a folder nor an .npz file" if source.exists() else "does not exist"
        raise UserError(f"{source} {state}: name a folder of images or an .npz file with --kd_item_images.")
    return source


def _read(file: Path) -> tuple[dict[str, int], np.ndarray]:
    """Token -> row, and the vectors [rows, D] of an .npz; the first of a token that is there twice."""
    (ids,), features = read_file(file, _IDS)
    row_of: dict[str, int] = {}
    for row, token in enumerate(ids):
        row_of.setdefault(token, row)
    if len(row_of) < len(ids):
        getLogger().warning(f"{file}: {len(ids) - len(row_of)} lines repeat an item; the first line of an item counts.")
    return row_of, features


def _pictures(folder: Path) -> dict[str, Path]:
    """Item token -> its picture, sorted by token."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file()]
    if not files:
        raise UserError(f"{folder} holds no {', '.join(_SUFFIXES)} file: name another with --kd_item_images.")
    files.sort(key=lambda file: (file.stem, _SUFFIXES.index(file.suffix.lower()), file.name))
    found: dict[str, Path] = {}
    for file in files:
        found.setdefault(file.stem, file)
    return found


def _encoded(folder: Path, tokens: Sequence[str], config: Config) -> tuple[dict[str, int], np.ndarray]:
    """Token -> row, and the vectors [rows, D] of the items' pictures, from the cache or the encoder."""
    wanted = set(tokens)
    files = {token: file for token, file in _pictures(folder).items() if token in wanted}
    if not files:
        return {}, np.zeros((0, 1), dtype=np.float32)
    encoder = image_encoder_folder(config["kd_image_encoder"])
    root = Path(config["kd_cache_dir"]) / config["dataset"]
    try:
        digests = [[token, store.file_digest(file)] for token, file in files.items()]
    except OSError as error:
        raise UserError(_unreadable(Path(error.filename), error)) from error
    identity = store.identity(
        code=VERSION,
        encoder=encoder_digest(encoder),
        images=store.digest(digests),
        **encoding_jobs.precision_entry(config),
    )
    rebuild = config["kd_rebuild"]
    stored = None if rebuild else store.find(root, "images", identity)
    if stored is None:
        with (
            torch.random.fork_rng(devices=[]),  # a teacher built after it must not depend on whether it ran
            encoding_jobs.resumable(
                root, "images", identity, len(files), label="Item images", unit="image", rebuild=rebuild
            ) as work,
        ):
            vectors = encode_images(list(files.values()), encoder, config, work)
            stored = store.save(root, "images", identity, {"vectors": vectors})
    return {token: row for row, token in enumerate(files)}, stored.array("vectors")


def encode_images(files: Sequence[Path], encoder: Path, config: Config, work: encoding_jobs.EncodingJob) -> np.ndarray:
    """The vision model's pooled output of each picture, or the mean of its tokens if it has no such output.

    Returns:
        [len(files), D] float32.
    """
    processor, model, pooled = _load_encoder(encoder)
    model = model.to(config["device"]).eval()

    @torch.no_grad()
    def encode_batch(index: Tensor) -> np.ndarray:
        batch = [_picture(files[i]) for i in index.tolist()]
        inputs = processor(images=batch, return_tensors="pt").to(config["device"])  # pixel_values [B, 3, H, W]
        with encoding_jobs.autocast(config):
            output = model(pixel_values=inputs["pixel_values"])
        pooler = getattr(output, "pooler_output", None) if pooled else None
        vector = output.last_hidden_state.mean(dim=1) if pooler is None else pooler.flatten(1)  # [B, D]
        return vector.float().cpu().numpy()

    return work.fill(torch.arange(len(files)).split(BATCH), encode_batch)


def _load_encoder(folder: Path) -> tuple[Any, nn.Module, bool]:
    """Preprocessing, vision model, and whether its pooled output means something."""
    from transformers import AutoImageProcessor, AutoModel  # takes seconds to import

    try:
        processor = AutoImageProcessor.from_pretrained(folder)
        model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"Cannot load {folder} as a transformers vision model ({type(error).__name__}): it needs "
            "config.json, preprocessor_config.json and weights; name another with --kd_image_encoder."
        ) from error
    # Models of text and images (CLIP and its kind) hold the part for images under this name.
    vision = getattr(model, "vision_model", model)
    # transformers fills what the file lacks with random numbers; mostly a pooling layer.
    lacking = [name for name in report["missing_keys"] if vision is model or name.startswith("vision_model.")]
    untrained = [name for name in lacking if "pooler" not in name]
    if untrained:
        raise UserError(
            f"{folder} lacks weights of its vision model, such as {untrained[0]}: name a complete one with "
            "--kd_image_encoder."
        )
    return processor, vision, not lacking


def _picture(file: Path) -> Any:
    """The picture in RGB, whatever its file holds."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(_unreadable(file, error)) from error


def _unreadable(file: Path, error: Exception) -> str:
    return f"Cannot read image {file} ({type(error).__name__}): replace it, or remove it and do without."


def _report(source: Path, items: int, matched: int, present: int) -> None:
    getLogger().info(f"Item images: {present} of {items} items have an image in {source}.")
    if present == 0:
        raise UserError(f"Every item's vector in {source} is zero or not finite: make the vectors anew.")
    if present < matched:
        getLogger().warning(f"{matched - present} image vectors are zero or not finite and do not count.")
