"""Item images by a side channel: ready vectors, or a folder of pictures encoded once; joined by item token.

Two sources, named by `kd_item_images`: an `.npz` file with the arrays `item_id` (strings) and `feat` (one row
per item), or a folder of `<item>.jpg`, `.jpeg` or `.png`, which a `transformers` vision model encodes. Items
without an image are normal: the second thing returned says which items have one. A picture that cannot be read is
named and counts as none; its stored vector is NaN.
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
from recbole_prmkd.data.encoder_layout import check_weights, local_copy
from recbole_prmkd.data.lost_lines import first_ten
from recbole_prmkd.data.split import by_domain, in_dataset
from recbole_prmkd.data.vectors_file import check_file, read_file, usable
from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import encoding_jobs, store

VERSION = "1.1"  # of `encode_images`; raise it when the same pictures and encoder give other vectors
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
    present = torch.zeros(len(tokens), dtype=torch.bool)
    vectors[items], present[items] = usable(features[rows])
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
    folder = Path(name).expanduser()
    if folder.is_dir():
        folder = local_copy(folder, "kd_image_encoder", "vision model")
        check_weights(folder, "kd_image_encoder")
    else:
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


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """Item token -> its pictures, the one that counts first; sorted by token."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file()]
    if not files:
        raise UserError(f"{folder} holds no {', '.join(_SUFFIXES)} file: name another with --kd_item_images.")
    files.sort(key=lambda file: (file.stem, _SUFFIXES.index(file.suffix.lower()), file.name))
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(file.stem, []).append(file)
    return found


def _encoded(folder: Path, tokens: Sequence[str], config: Config) -> tuple[dict[str, int], np.ndarray]:
    """Token -> row, and the vectors [rows, D] of the items' pictures, from the cache or the encoder.

    Raises:
        UserError: no picture can be read, or the encoder gives most pictures one vector.
    """
    wanted = set(tokens)
    pictures = {token: files for token, files in _pictures(folder).items() if token in wanted}
    files = {token: several[0] for token, several in pictures.items()}
    names = [[file.name for file in several] for several in pictures.values() if len(several) > 1]
    double = [f"{taken} (not {', '.join(others)})" for taken, *others in names]
    if double:
        getLogger().warning(f"{folder}: {len(double)} items have several pictures; taken is {first_ten(double)}.")
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
            notes: dict[str, Any] = {"encoder": config["kd_image_encoder"], "images": len(files)}
            vectors = encode_images(list(files.values()), encoder, config, work, notes)
            _check_distinct(vectors, [digest for _, digest in digests], config["kd_image_encoder"])
            stored = store.save(root, "images", identity, {"vectors": vectors}, notes)
    vectors = stored.array("vectors")
    getLogger().info(
        f"Item images: {len(files)} pictures encoded by {stored.notes['encoder']}, pooling {stored.notes['pooling']}."
    )
    readable = {token: row for row, token in enumerate(files) if np.isfinite(vectors[row]).all()}
    broken = [str(file) for token, file in files.items() if token not in readable]
    if not readable:
        raise UserError(
            f"None of {len(broken)} pictures in {folder} can be read and gives a finite vector: replace {broken[0]} "
            "and the others, or name another encoder with --kd_image_encoder."
        )
    if broken:
        getLogger().warning(
            f"{len(broken)} pictures cannot be read or have no finite vector, so their items count as items without "
            f"an image: {first_ten(broken)}; replace them."
        )
    return readable, vectors


def _check_distinct(vectors: np.ndarray, digests: Sequence[str], name: str) -> None:
    """Different pictures have different vectors; some may hold the same image in files of their own.

    Raises:
        UserError: less than half of them have.
    """
    rows = {digest: row for row, digest in enumerate(digests) if np.isfinite(vectors[row]).all()}
    apart = len({store.digest([vectors[row]]) for row in rows.values()})
    if 2 * apart < len(rows):
        raise UserError(
            f"The encoder {name} gave {apart} vectors for {len(rows)} different pictures: name another encoder, or its "
            "complete folder, with --kd_image_encoder."
        )


def encode_images(
    files: Sequence[Path],
    encoder: Path,
    config: Config,
    work: encoding_jobs.EncodingJob,
    notes: dict[str, Any] | None = None,
) -> np.ndarray:
    """The vision model's pooled output of each picture, or the mean of its tokens if it has no such output.

    Args:
        notes: takes `pooling`, which of the two it was.
    Returns:
        [len(files), D] float32; NaN where a picture cannot be read.
    """
    processor, model, pooled = _load_encoder(encoder)
    model = model.to(config["device"]).eval()

    @torch.no_grad()
    def pool(batch: list[Any]) -> tuple[Tensor, str]:
        inputs = processor(images=batch, return_tensors="pt").to(config["device"])  # pixel_values [B, 3, H, W]
        with encoding_jobs.autocast(config):
            output = model(pixel_values=inputs["pixel_values"])
        pooler = getattr(output, "pooler_output", None) if pooled else None
        if pooler is None:
            return output.last_hidden_state.mean(dim=1), "mean of its tokens"  # [B, D]
        return pooler.flatten(1), "its own pooled output"  # [B, D]

    if notes is not None:
        notes["pooling"] = pool([_blank()])[1]

    def encode_batch(index: Tensor) -> np.ndarray:
        pictures = [_picture(files[i]) for i in index.tolist()]
        vector, _ = pool([_blank() if picture is None else picture for picture in pictures])  # [B, D]
        vector[[n for n, picture in enumerate(pictures) if picture is None]] = torch.nan
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
    """The picture in RGB, whatever its file holds; None where that is no whole picture."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (PermissionError, FileNotFoundError) as error:
        raise UserError(_unreadable(file, error)) from error
    except Exception:  # the decoders raise a dozen kinds
        return None


def _blank() -> np.ndarray:
    return np.zeros((32, 32, 3), dtype=np.uint8)


def _unreadable(file: Path, error: Exception) -> str:
    return f"Cannot read image {file} ({type(error).__name__}): replace it, or remove it and do without."


def _report(source: Path, items: int, matched: int, present: int) -> None:
    getLogger().info(f"Item images: {present} of {items} items have an image in {source}.")
    if present == 0:
        raise UserError(f"Every item's vector in {source} is zero or not finite: make the vectors anew.")
    if present < matched:
        getLogger().warning(f"{matched - present} image vectors are zero or not finite and do not count.")
