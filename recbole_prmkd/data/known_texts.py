"""Text vectors that another data set, or an earlier state of this one, has stored: taken over text by text.

Every stored folder of text vectors holds a digest of each text. Only folders of the same encoder, settings and versions
count. A vector depends in its last bits on the texts that were encoded in the same batch (about 1e-7 on a CPU), so
vectors of which some were taken over have an identity of their own: it names the texts' vectors that were taken.
"""

import hashlib
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config

from recbole_prmkd.storage import store

_MARK = "taken_over"  # of the identity
_BYTES = 16  # of a text's digest, which two texts do not share by chance
_OF_THE_DATA = {"items", "text", _MARK}  # parts of an identity that differ between data sets


def text_digests(texts: Sequence[str]) -> np.ndarray:
    """What a stored folder says of its texts, [N, 16] bytes."""
    return np.array([[*_digest(text)] for text in texts], dtype=np.uint8).reshape(len(texts), _BYTES)


def find_vectors(root: Path, identity: Mapping[str, Any]) -> store.StoredFolder | None:
    """The stored vectors of these texts, all encoded together or some taken over; None after a line in the log."""
    there, wanted = [*store.identities(root, "text").values()], store.as_json(dict(identity))
    if wanted not in there:
        for of_it in there:
            if _MARK in of_it and _without(of_it, {_MARK}) == wanted:
                stored = store.find(root, "text", of_it)
                if stored is not None:
                    return stored
    return store.find(root, "text", identity)


def known_vectors(
    config: Config, identity: Mapping[str, Any], texts: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Vectors of those texts that some folder in kd_cache_dir has, and what this adds to the identity."""
    wanted = {_digest(text): text for text in sorted(set(texts) - {""})}
    known: dict[str, np.ndarray] = {}
    own = store.as_json(dict(identity))
    base = _without(own, _OF_THE_DATA)
    for root in sorted(path for path in Path(config["kd_cache_dir"]).glob("*") if path.is_dir()):
        for path, of_it in store.identities(root, "text").items():
            if root.name == config["dataset"] and _without(of_it, {_MARK}) == own:
                continue  # another process has just made these same vectors
            if _without(of_it, _OF_THE_DATA) == base and len(known) < len(wanted):
                _take(path, wanted, known)
    if not known:
        return {}, {}
    getLogger().info(f"Item text: {len(known)} of {len(wanted)} texts have stored vectors; the others are encoded.")
    order = sorted(known)
    return known, {_MARK: store.digest([order, *(known[text] for text in order)])}


def _take(path: Path, wanted: Mapping[bytes, str], known: dict[str, np.ndarray]) -> None:
    """Add what the folder at this path has of the texts that are wanted and not known."""
    if not (path / "texts.npy").is_file():
        return  # an earlier version's
    stored = store.read(path)
    if stored is None or "texts" not in {Path(name).stem for name in stored.files}:
        return
    vectors = stored.array("vectors")
    for row, digest in enumerate(np.asarray(stored.array("texts"))):
        text = wanted.get(digest.tobytes())
        if text is not None and text not in known:
            known[text] = np.array(vectors[row])


def _without(identity: Mapping[str, Any], parts: set[str]) -> dict[str, Any]:
    return {key: value for key, value in identity.items() if key not in parts}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:_BYTES]
