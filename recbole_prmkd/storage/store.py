"""Folders on disk that a later run may trust: item vectors, fine-tuned teachers, teacher caches, top items.

A folder holds a few arrays or weight files and `manifest.json`. It is written under another name and renamed
when complete, so a killed run leaves nothing that has the right name. The manifest records the identity of
everything that the content depends on; a folder is reused only if the identity is equal and every file, the manifest
among them, still has its checksum. Nothing here is pickled: arrays are npy (memory-mapped), weights are safetensors.

`identity` puts the version of the code that makes the content into the identity. Each maker declares it beside its
code (`VERSION`, or a teacher's `version`) and raises it by hand whenever the same input gives other outputs;
`tests/test_output_versions.py` fails where that was forgotten. Stored folders of the former version are then made
anew, and so they are under another minor version of torch or transformers, whose numerics may differ.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from recbole_prmkd.storage.disk import PART, STALE_SECONDS, remove, remove_stale, writing
from recbole_prmkd.storage.json_files import as_json, read_json, read_sealed, write_json, write_sealed

__all__ = ["StoredFolder", "as_json", "check_room", "digest", "file_digest", "find", "identity", "save", "write_json"]

SCHEMA = 2  # 1 had no checksum of the manifest
MANIFEST = "manifest.json"
LIBRARIES = ("torch", "transformers")
_READABLE = 48  # characters of a value that the log shows; digests are longer

Files = Mapping[str, "np.ndarray | Mapping[str, torch.Tensor]"]


def identity(code: str, **parts: Any) -> dict[str, Any]:
    """All that a stored folder's content depends on, as `find` and `save` want it.

    Args:
        code: version of the code that makes the content.
        parts: flat name -> value; digests of the inputs, and the settings that count.
    """
    return {"code": code, **library_versions(), **parts}


def library_versions() -> dict[str, str]:
    """Major and minor version of the libraries whose numerics the contents depend on."""
    return {name: ".".join(metadata.version(name).split(".")[:2]) for name in LIBRARIES}


def digest(parts: Iterable[Any]) -> str:
    """sha256 (hex) of a sequence of strings, numbers, arrays and tensors; the order counts."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().contiguous().numpy()
        if isinstance(part, np.ndarray):
            sha.update(f"{part.dtype}{part.shape}".encode())
            sha.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            sha.update(json.dumps(part, sort_keys=True, default=str).encode())
        sha.update(b"\0")
    return sha.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 22):
            sha.update(block)
    return sha.hexdigest()


class StoredFolder:
    """A complete, verified folder. `array` maps an npy file, `weights` reads a safetensors file."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.identity: dict[str, Any] = manifest["identity"]
        self.notes: dict[str, Any] = manifest["notes"]
        self.files: dict[str, dict[str, Any]] = manifest["files"]

    def array(self, name: str) -> np.ndarray:
        """The array, memory-mapped and read-only."""
        return np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors by name, on the CPU."""
        return load_file(self.path / f"{name}.safetensors")


def find(root: Path, kind: str, identity: Mapping[str, Any]) -> StoredFolder | None:
    """The stored folder of this identity, or None after a log line that says why there is none.

    Args:
        root: folder of the data set inside the cache or teacher directory.
        kind: what it is, for example `knowledge-UniSRec`.
        identity: what `identity` gave; two runs with an equal one may share the content.
    Raises:
        ValueError: the identity holds no versions.
    """
    path = _path(root, kind, identity)
    if not path.is_dir():
        _say_what_differs(root, kind, identity)
        return None
    fault = _fault(path, identity)
    if fault is None:
        return StoredFolder(path, _manifest(path))
    getLogger().warning(f"{path} is not used: {fault}; it is made anew.")
    return None


def read(path: Path) -> StoredFolder | None:
    """The folder at this path, whatever its identity; None where there is none, or one that is damaged."""
    if not path.is_dir():
        return None
    try:
        manifest = _manifest(path)
    except (OSError, ValueError):
        return None
    return StoredFolder(path, manifest) if _fault(path, manifest["identity"]) is None else None


def identities(root: Path, kind: str) -> dict[Path, dict[str, Any]]:
    """The folders of this kind and what each says of its content, which is not verified; damaged ones are left out."""
    found = {}
    for file in sorted(root.glob(f"{kind}-*/{MANIFEST}")):
        with suppress(OSError, ValueError):
            found[file.parent] = _manifest(file.parent)["identity"]
    return found


def check_room(root: Path) -> None:
    """To be asked before the work whose product `save` is to write there.

    Raises:
        UserError: nothing can be written in this folder.
    """
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def save(
    root: Path,
    kind: str,
    identity: Mapping[str, Any],
    files: Files,
    notes: Mapping[str, Any] | None = None,
    *,
    replace: bool = True,
) -> StoredFolder:
    """Write a folder atomically and return it.

    Args:
        replace: an older folder of the same identity is replaced; False returns that one if it is sound, since another
            process, which made the same at the same time, may have mapped its arrays.
    Raises:
        UserError: the folder cannot be written (full disk, no permission).
        ValueError: the identity holds no versions.
    """
    path = _path(root, kind, identity)
    part = root / f"{PART}{path.name}-{os.getpid()}"
    with writing(path):
        try:
            root.mkdir(parents=True, exist_ok=True)
            remove_stale(root, f"{PART}*", STALE_SECONDS)
            remove(part)
            part.mkdir()
            written = {name: _write(part, name, content) for name, content in files.items()}
            described = {file.name: _described(file, files[name]) for name, file in written.items()}
            manifest = {"schema": SCHEMA, "identity": dict(identity), "files": described, "notes": dict(notes or {})}
            write_sealed(part / MANIFEST, manifest)
            if replace or not path.is_dir() or _fault(path, identity) is not None:
                _swap_in(part, path, identity)
        finally:  # after an error too, whatever it is
            remove(part)
        return StoredFolder(path, _manifest(path))


def _path(root: Path, kind: str, identity: Mapping[str, Any]) -> Path:
    missing = {"code", *LIBRARIES} - identity.keys()
    if missing:
        raise ValueError(f"The identity of a {kind} lacks {', '.join(sorted(missing))}: make it with store.identity.")
    return root / f"{kind}-{digest([dict(identity)])[:16]}"


def _write(folder: Path, name: str, content: "np.ndarray | Mapping[str, torch.Tensor]") -> Path:
    if isinstance(content, np.ndarray):
        file = folder / f"{name}.npy"
        np.save(file, content, allow_pickle=False)
    else:
        file = folder / f"{name}.safetensors"
        save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in content.items()}, file)
    return file


def _described(file: Path, content: "np.ndarray | Mapping[str, torch.Tensor]") -> dict[str, Any]:
    """A file in the manifest."""
    entry: dict[str, Any] = {"sha256": file_digest(file), "bytes": file.stat().st_size}
    if isinstance(content, np.ndarray):
        entry |= {"shape": list(content.shape), "dtype": str(content.dtype)}
    return entry


def _swap_in(part: Path, path: Path, identity: Mapping[str, Any]) -> None:
    """Put the folder in its place, and away what is there; of two processes that do so at once, one's stays."""
    old = part.with_name(part.name + "-old")
    remove(old)
    with suppress(FileNotFoundError):
        os.replace(path, old)
    try:
        os.replace(part, path)
    except OSError as error:  # has another process just put the same there?
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or _fault(path, identity) is not None:
            with suppress(OSError):
                os.replace(old, path)
            raise
    finally:
        remove(old)


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of a folder of this schema.

    Raises:
        OSError: it cannot be read. ValueError: it is damaged, of another schema or something else.
    """
    content = read_json(path / MANIFEST)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"its schema is {str(schema)[:_READABLE]}, this version reads {SCHEMA}")
    manifest = read_sealed(path / MANIFEST)
    kinds = {"identity": dict, "files": dict, "notes": dict}
    if not all(isinstance(manifest.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"{MANIFEST} lacks {', '.join(kinds)}")
    return manifest


def _fault(path: Path, identity: Mapping[str, Any]) -> str | None:
    """What is wrong with a folder of the right name, or None."""
    try:
        manifest = _manifest(path)
        differing = _differing(manifest["identity"], identity)
        if differing:
            return f"its manifest differs in {', '.join(differing)}"
        for name, entry in manifest["files"].items():
            if Path(name).name != name or file_digest(path / name) != entry["sha256"]:
                return f"the checksum of {name} differs"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({error})"
    return None


def _differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    plain = as_json(dict(wanted))
    keys = [key for key in sorted({*stored, *plain}) if stored.get(key) != plain.get(key)]
    return [_change(key, stored.get(key), plain.get(key)) for key in keys]


def _change(key: str, stored: Any, wanted: Any) -> str:
    """The key, with both values where they are short enough to read."""
    values = [json.dumps(value) for value in (stored, wanted)]
    return f"{key} ({values[0]}, now {values[1]})" if max(map(len, values)) <= _READABLE else key


def _say_what_differs(root: Path, kind: str, identity: Mapping[str, Any]) -> None:
    nearest: list[str] | None = None
    for sibling in sorted(root.glob(f"{kind}-*/{MANIFEST}")):
        try:
            differing = _differing(_manifest(sibling.parent)["identity"], identity)
        except (OSError, ValueError) as error:
            getLogger().warning(f"{sibling.parent} is not used: it cannot be read ({error}).")
            continue
        if nearest is None or len(differing) < len(nearest):
            nearest = differing
    if nearest is None:
        getLogger().info(f"No {kind} is stored in {root}: it is made now.")
    else:
        getLogger().info(f"The stored {kind} differs in {', '.join(nearest)}: it is made anew.")
