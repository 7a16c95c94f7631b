"""The folders in which people keep an encoder: where its files lie, whether all are there, and what they say of it.

Three layouts are read: a sentence-transformers folder (`modules.json`), a plain transformers folder (`config.json` and
weights), and a folder of the hub's cache (`snapshots/<revision>/`), which leads to one of the two. The word vectors of
`kd_text_encoder: static` lie in a package (`static_encoder`).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from recbole_prmkd.data.static_encoder import POOLING, is_wordllama
from recbole_prmkd.errors import UserError

_CONFIG, _MODULES = "config.json", "modules.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_LFS = b"version https://git-lfs"
_NEED_FILES = {"Pooling", "Dense", "WeightedLayerPooling", "LayerNorm"}  # modules that cannot be made from nothing


class Layout(NamedTuple):
    """What the files of a sentence encoder say.

    pooling: how token states become one vector, and what follows, for example `mean, Normalize`.
    max_tokens: the most tokens that it reads; None where no file says so.
    """

    pooling: str
    max_tokens: int | None


def local_copy(folder: Path, key: str, what: str = "encoder") -> Path:
    """The folder that holds the files: the given one, or the snapshot below a folder of the hub's cache.

    Args:
        key, what: that named the folder, and what should be there, for the message.
    Raises:
        UserError: the files of no model, or of several, lie below it.
    """
    if _is_model(folder):
        return folder
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    inside = sorted(path for path in _folders(snapshots) if _is_model(path))
    main = snapshots.parent / "refs" / "main"
    if main.is_file() and (named := snapshots / main.read_text(encoding="utf-8").strip()) in inside:
        return named
    if len(inside) == 1:
        return inside[0]
    if not snapshots.is_dir():  # a folder above the model's
        inside = sorted(path for path in _folders(folder) if _is_model(path) or (path / "snapshots").is_dir())
    if inside:
        others = f" or one of {len(inside) - 1} others beside it" if len(inside) > 1 else ""
        raise UserError(f"{folder} holds no model itself: name {inside[0]}{others} with --{key}.")
    adapter = (
        " but an adapter, which must be merged into its model first" if _has(folder, "adapter_config.json") else ""
    )
    raise UserError(
        f"{folder} holds no {what}{adapter} (no {_CONFIG} with its weights, and no {_MODULES}): name the folder that "
        f"has these files with --{key}."
    )


def check_weights(folder: Path, key: str) -> None:
    """The weights are there, all parts of them, and no pointers to them.

    Raises:
        UserError: they are not.
    """
    advice = f"download the model again, or name another one with --{key}."
    weights = [file for pattern in _WEIGHTS for file in folder.glob(pattern)]
    for index in folder.glob("*.index.json"):
        parts = _json(index).get("weight_map", {}).values()
        missing = sorted({str(part) for part in parts if not _has(folder, str(part))})
        if missing:
            raise UserError(f"{folder} lacks {missing[0]}, a part of the weights that {index.name} names: {advice}")
    if not weights:
        raise UserError(f"{folder} lacks the weights (model.safetensors or pytorch_model.bin): {advice}")
    for file in weights:
        with file.open("rb") as opened:
            if opened.read(len(_LFS)) == _LFS:
                raise UserError(f"{file} is a Git LFS pointer, not the weights: run git lfs pull in its folder.")


def base_folder(folder: Path) -> Path:
    """Where the transformer of a text encoder lies: the folder, or the part of it that `modules.json` names first."""
    modules = _modules(folder)
    return folder / modules[0][1] if modules else folder


def averages_words(folder: Path) -> bool:
    """Whether this sentence encoder is a table of word vectors, without a transformer."""
    return is_wordllama(folder) or any(kind == "StaticEmbedding" for kind, _ in _modules(folder)[:1])


def read_layout(folder: Path, key: str = "kd_text_encoder") -> Layout:
    """What a sentence encoder's folder says, once all that it names is found to be there.

    Raises:
        UserError: a part is missing.
    """
    if is_wordllama(folder):
        return Layout(POOLING, None)
    modules, base = _modules(folder), base_folder(folder)
    for kind, path in modules:
        if kind in _NEED_FILES and not _has(folder / path, _CONFIG):
            raise UserError(
                f"{folder} lacks {path}/{_CONFIG}, which its {_MODULES} names: copy it there, or name a complete "
                f"folder with --{key}."
            )
    if not _has(base, _CONFIG):
        if not modules or modules[0][0] == "Transformer":
            raise UserError(f"{base} lacks {_CONFIG}: copy it there, or name a complete folder with --{key}.")
        return Layout(", ".join(kind for kind, _ in modules), None)
    config = _json(base / _CONFIG)
    if modules:
        after = [_pooling(folder / path) if kind == "Pooling" else kind for kind, path in modules[1:]]
        return Layout(", ".join(after) or modules[0][0], _limit(base, config))
    # What sentence-transformers adds to a plain model.
    causal = str((config.get("architectures") or [""])[0]).endswith("ForCausalLM") and config.get("is_causal", True)
    return Layout("lasttoken" if causal else "mean", _limit(base, config))


def _limit(base: Path, config: dict[str, Any]) -> int | None:
    """The tokens that sentence-transformers gives the model at most."""
    for file in sorted(base.glob("sentence_*_config.json")):
        limit = _json(file).get("max_seq_length")
        if isinstance(limit, int):
            return limit
    tokenizer = _json(base / "tokenizer_config.json") if _has(base, "tokenizer_config.json") else {}
    limits = [tokenizer.get("model_max_length"), config.get("max_position_embeddings")]
    found = [int(limit) for limit in limits if isinstance(limit, int | float) and 0 < limit < 1e9]
    return min(found, default=None)


def _pooling(folder: Path) -> str:
    config = _json(folder / _CONFIG)
    modes = config.get("pooling_mode")
    if modes is None:  # before sentence-transformers 6
        prefix = "pooling_mode_"
        named = [
            key.removeprefix(prefix).removesuffix("_tokens").removesuffix("_token") for key in _true(config, prefix)
        ]
        modes = named or "mean"
    return modes if isinstance(modes, str) else "+".join(map(str, modes))


def _true(config: dict[str, Any], prefix: str) -> list[str]:
    return [key for key, value in config.items() if key.startswith(prefix) and value is True]


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Class and path of each module of a sentence-transformers folder; none for other folders.

    Raises:
        UserError: `modules.json` cannot be read.
    """
    file = folder / _MODULES
    if not file.is_file():
        return []
    content = _json(file, list)
    try:
        return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in content]
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} is no list of modules with type and path: download the model again.") from error


def _json(file: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds no {kind.__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {file} ({' '.join(str(error).split())}): download the model again.") from error
    return content


def _is_model(folder: Path) -> bool:
    return _has(folder, _CONFIG) or _has(folder, _MODULES)


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
