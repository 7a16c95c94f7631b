"""Item text by a side channel: the item file, read by external item token, and its sentence vectors.

Never through the student's `load_col`: every column loaded there becomes a feature of the student, and items
that stand only in the item file would get ids.
"""

import csv
import html
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset

from recbole_prmkd.data import atomic_files, processed
from recbole_prmkd.data.encoder import VERSION, encode, encoder_digest, encoder_folder, max_tokens
from recbole_prmkd.data.encoder_layout import read_layout
from recbole_prmkd.data.known_texts import find_vectors, known_vectors, text_digests
from recbole_prmkd.data.lost_lines import first_ten
from recbole_prmkd.data.split import by_domain, in_dataset
from recbole_prmkd.errors import UserError
from recbole_prmkd.storage import encoding_jobs, store


def item_file(config: Config) -> Path:
    """The file that item text is read from."""
    given = config["kd_text_file"]
    if _is_processed(config):
        return Path(config["data_path"]) / f"{config['dataset']}.text"
    return in_dataset(given, config) if given else Path(config["data_path"]) / f"{config['dataset']}.item"


def text_fields(config: Config) -> list[str]:
    """Names of the columns that make an item's text, in order. Reads the header only.

    Raises:
        UserError: no such file, no item column, no such field, or no text field at all.
    """
    if _is_processed(config):
        return [processed.TEXT_FIELD]
    path = item_file(config)
    columns = _header(path, config)
    names = list(columns)
    if config["ITEM_ID_FIELD"] not in names:
        raise UserError(
            f"{path} has no column {config['ITEM_ID_FIELD']!r} (it has {', '.join(names)}): "
            "name the item column with --ITEM_ID_FIELD or another file with --kd_text_file."
        )
    wanted = config["kd_text_fields"]
    if wanted:
        missing = [field for field in wanted if field not in names]
        # Of several data sets to pre-train on, each has its own fields.
        if missing and not (config["train_stage"] == "pretrain" and len(missing) < len(wanted)):
            raise UserError(
                f"{path} has no field {', '.join(map(repr, missing))}: kd_text_fields may name "
                f"{', '.join(name for name in names if name != config['ITEM_ID_FIELD'])}."
            )
        return [field for field in wanted if field in names]
    fields = [name for name, kind in columns.items() if kind == "token_seq"]
    if not fields:
        raise UserError(f"{path} has no token_seq field: name the text fields with --kd_text_fields=[...].")
    return fields


def item_texts(config: Config, tokens: Sequence[str]) -> list[dict[str, str]]:
    """The text fields of each item, cleaned; an item that the file lacks has empty fields.

    Args:
        tokens: external item tokens.
    Returns:
        one dict (field -> text, in the order of `text_fields`) per token.
    Raises:
        UserError: the file cannot be read, or names none of the items.
    """
    path, fields = item_file(config), text_fields(config)
    if _is_processed(config):
        texts = processed.texts(path.parent, config["dataset"])
        return [{processed.TEXT_FIELD: clean(texts.get(token, ""))} for token in tokens]
    separator, encoding = config["field_separator"] or "\t", config["encoding"] or "utf-8"
    try:
        # Between tabs a quote is a character like any other; between commas it holds together a text with one.
        frame = pd.read_csv(
            path,
            sep=separator,
            dtype=str,
            keep_default_na=False,
            quoting=csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL,
            encoding=encoding,
            index_col=False,
        ).fillna("")  # a line may end before its last field
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read item text from {path}: {' '.join(str(error).split())}.") from error
    frame.columns = pd.Index([column.split(":")[0] for column in frame.columns])
    item = config["ITEM_ID_FIELD"]
    frame[item] = [_unquoted(token) for token in frame[item]]
    doubled = frame[item].duplicated()
    if doubled.any():
        names = first_ten(frame[item][doubled].unique())
        getLogger().warning(f"{path}: {int(doubled.sum())} lines repeat an item ({names}); its first line counts.")
    lines = frame[~doubled].set_index(item, drop=False)[fields]
    if not lines.index.isin(list(tokens)).any():
        raise UserError(f"{path} names none of the data set's items: its column {item!r} holds other ids.")
    empty = dict.fromkeys(fields, "")
    found = {str(token): dict(zip(fields, map(clean, line), strict=True)) for token, *line in lines.itertuples()}
    return [found.get(token, empty) for token in tokens]


def _unquoted(token: str) -> str:
    """The id as RecBole reads it: its csv reader takes quotes around a value away, also between tabs."""
    quoted = len(token) > 1 and token[0] == token[-1] == '"'
    return token[1:-1].replace('""', '"') if quoted else token


def as_sentence(fields: dict[str, str]) -> str:
    """One text from the fields, each closed by one full stop (UniSRec's cleaning)."""
    return " ".join(text.rstrip(".").rstrip() + "." for text in fields.values() if text.strip(". "))


def item_text_vectors(config: Config, dataset: Dataset, word_drop: float = 0.0) -> torch.Tensor:
    """Sentence vectors of all items of a RecBole data set, from the cache or the encoder.

    Items without text, and row 0 (PAD), are zero vectors; a warning counts them.

    Args:
        word_drop: chance of each word to be left out, sampled once with the run's seed.
    Returns:
        [n_items, D] float32, by internal item id.
    """
    parts = []
    for domain, tokens in by_domain(config, dataset):
        if has_ready_vectors(domain):
            folder, name = item_file(domain).parent, domain["dataset"]
            parts.append(processed.vectors(folder, name, tokens, dropped_words=word_drop > 0))
            continue
        texts = _sentences(domain, sorted(tokens))
        if word_drop:
            texts = drop_words(texts, word_drop, domain["seed"])
        stored, reused = _stored_vectors(domain, sorted(tokens), texts)
        if not reused:  # else `prepare_item_text` has said it
            _report_encoding(domain, stored.notes)
        order = np.argsort(np.argsort(tokens, kind="stable"))  # position of each item among the sorted tokens
        parts.append(np.asarray(stored.array("vectors"))[order])
    vectors = np.concatenate([np.zeros_like(parts[0][:1]), *parts])
    return torch.from_numpy(vectors)  # [n_items, D]


def has_ready_vectors(config: Config) -> bool:
    """Whether the data set brings its text vectors along, as UniSRec's processed ones do."""
    return _is_processed(config) and processed.has_vectors(Path(config["data_path"]), config["dataset"])


def _is_processed(config: Config) -> bool:
    folder, name = Path(config["data_path"]), config["dataset"]
    if config["kd_text_file"] or not processed.is_processed(folder, name):
        return False
    # Pre-split files with histories may have RecBole's item file beside them.
    return (folder / f"{name}.item2index").is_file() or not (folder / f"{name}.item").is_file()


def drop_words(texts: list[str], chance: float, seed: int) -> list[str]:
    """The texts without some of their words; one with any word keeps at least one."""
    generator = np.random.default_rng(seed)
    dropped = []
    for text in texts:
        words = text.split()
        draws = generator.random(len(words))
        kept = [word for word, draw in zip(words, draws, strict=True) if draw >= chance]
        dropped.append(" ".join(kept or words[:1]))
    return dropped


def prepare_item_text(
    config: Config, tokens: Sequence[str], vectors: bool = True, notes: dict[str, Any] | None = None
) -> bool:
    """Report the items' text and, where wanted, make its vectors.

    Args:
        notes: takes what is stored with encoded vectors: encoder, pooling, max_tokens, number of texts and of cut ones.
    Returns:
        whether there was nothing to make: they are stored, came with the data, or are not wanted.
    """
    if vectors and has_ready_vectors(config):
        getLogger().info(f"Item text: ready vectors, {config['dataset']}.{processed.READY}; no text is encoded.")
        return True
    ordered = sorted(tokens)
    texts = _sentences(config, ordered)
    _report_coverage(config, ordered, texts)
    if not vectors:
        return True
    stored, reused = _stored_vectors(config, ordered, texts, rebuild=config["kd_rebuild"])
    _report_encoding(config, stored.notes)
    if notes is not None:
        notes.update(stored.notes)
    return reused


def _sentences(config: Config, tokens: list[str]) -> list[str]:
    return [as_sentence(fields) for fields in item_texts(config, tokens)]


def _stored_vectors(
    config: Config, tokens: list[str], texts: list[str], rebuild: bool = False
) -> tuple[store.StoredFolder, bool]:
    root = Path(config["kd_cache_dir"]) / config["dataset"]
    folder = encoder_folder(config["kd_text_encoder"])
    layout = read_layout(folder)
    identity = store.identity(
        code=VERSION,
        encoder=encoder_digest(folder),
        pooling=layout.pooling,
        max_tokens=max_tokens(config, layout),
        items=store.digest(tokens),
        text=store.digest(texts),
        **encoding_jobs.precision_entry(config),
    )
    stored = None if rebuild else find_vectors(root, identity)
    if stored is not None:
        return stored, True
    notes = {
        "encoder": config["kd_text_encoder"],
        "pooling": layout.pooling,
        "encoder_limit": layout.max_tokens,
        "items": len(texts),
        "texts": len(texts) - texts.count(""),
    }
    known, mark = ({}, {}) if rebuild else known_vectors(config, identity, texts)
    identity = {**identity, **mark}
    with encoding_jobs.resumable(root, "text", identity, len(texts), label="Item texts", rebuild=rebuild) as work:
        vectors = encode(texts, config, work, notes, known)
        return store.save(root, "text", identity, {"vectors": vectors, "texts": text_digests(texts)}, notes), False


def _header(path: Path, config: Config) -> dict[str, str]:
    """Types of the columns of an atomic file by name."""
    try:
        return atomic_files.columns(path, config["field_separator"], config["encoding"])
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"Item text is missing: cannot read {path} ({type(error).__name__}); put an item file there "
            "or name one with --kd_text_file."
        ) from error


def clean(text: Any) -> str:
    """Unescape HTML, drop double quotes, collapse white space (UniSRec's rules)."""
    return " ".join(html.unescape(str(text)).replace('"', "").split())


def _report_encoding(config: Config, notes: Mapping[str, Any]) -> None:
    """Log how the texts were encoded, in this run or in the one that stored them, and how many were cut."""
    limit = notes["max_tokens"]
    getLogger().info(
        f"Item text: {notes['texts']} texts encoded by {notes['encoder']}, pooling {notes['pooling']}, at most {limit} "
        "tokens each."
    )
    if not notes["cut"]:
        return
    advice = "raise --kd_text_max_tokens to keep more"
    if limit < config["kd_text_max_tokens"] or limit == notes["encoder_limit"]:
        advice = (
            "the encoder reads no more, so name one that does with --kd_text_encoder, or the fields that matter with "
            "--kd_text_fields"
        )
    getLogger().warning(
        f"{notes['cut']} of {notes['items']} item texts are longer than {limit} tokens and were cut: {advice}."
    )


def _report_coverage(config: Config, tokens: list[str], texts: list[str]) -> None:
    without = [token for token, text in zip(tokens, texts, strict=True) if not text]
    covered = len(tokens) - len(without)
    getLogger().info(
        f"Item text: {covered} of {len(tokens)} items, fields {', '.join(text_fields(config))} of {item_file(config)}."
    )
    if covered == 0:
        raise UserError(
            f"Every item's text is empty: name other fields than {text_fields(config)} of {item_file(config)}."
        )
    if without:
        getLogger().warning(f"{len(without)} items have no text (zero vector), for example {first_ten(without)}.")
