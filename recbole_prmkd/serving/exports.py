"""A trained student in files that other programs read: vectors, weights, ONNX."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from recbole_prmkd.errors import UserError
from recbole_prmkd.serving.histories import Histories, histories_of
from recbole_prmkd.serving.kept_data import with_weights
from recbole_prmkd.serving.loaded_model import LoadedModel, load
from recbole_prmkd.serving.onnx_file import write_onnx
from recbole_prmkd.serving.products import Products
from recbole_prmkd.serving.scoring import Scorer
from recbole_prmkd.storage.disk import replacing, writing

FORMATS = ("vectors", "weights", "onnx")
HISTORIES = ("all", "train")


def export(
    model: LoadedModel | str | Path,
    format: str,
    output: str | Path | None = None,
    history: str = "all",
) -> list[Path]:
    """Write a trained student for other programs; returns the files.

    vectors: `items` and `users`, each as .npz (item_id or user_id, and feat) and as .parquet (and vector). A score is
    the product of both vectors. The .npz files are what the teacher `Vectors` reads.
    weights: one .safetensors with weights, tokens and settings, which `load` reads.
    onnx: the model's scoring, checked against its own scores.

    Args:
        model: what `load` gave, or what it takes.
        format: `vectors`, `weights` or `onnx`.
        output: a folder for vectors, else a file; None: in the folder `export` of the run.
        history: which part of a history the users' vectors come from: `all`, or `train` alone, for a teacher.
    Raises:
        UserError: bad input, or a model that has no such form.
    """
    if format not in FORMATS:
        raise UserError(f"--format={format}: write one of {', '.join(FORMATS)}.")
    if history not in HISTORIES:
        raise UserError(f"--history={history}: write one of {', '.join(HISTORIES)}.")
    if history != "all" and format != "vectors":
        raise UserError("--history is for --format=vectors: leave it out.")
    loaded = model if isinstance(model, LoadedModel) else load(model)
    folder = loaded.kept.file.parent / "export"
    if format == "vectors":
        return _vectors(loaded, Path(output) if output else folder, history)
    suffix = {"weights": ".safetensors", "onnx": ".onnx"}[format]
    file = Path(output) if output else folder / f"{loaded.name}{suffix}"
    if file.suffix != suffix or file.is_dir():
        raise UserError(f"--output={file}: name a file that ends in {suffix}.")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        write_onnx(loaded, file)
    else:
        with_weights(loaded.kept, loaded.model.state_dict(), file, loaded.model.other_parameter())
    return [file]


def _vectors(loaded: LoadedModel, folder: Path, history: str) -> list[Path]:
    histories = loaded.histories if history == "all" else training_histories(loaded)
    users = np.flatnonzero(histories.lengths > 0)
    scorer = Scorer(loaded, histories, known=True)
    products = Products(scorer, users)
    table = np.empty((len(users), products.width), dtype=np.float32)
    for start in range(0, len(users), scorer.batch):
        table[start : start + scorer.batch] = products.users(users[start : start + scorer.batch]).cpu().numpy()
    with writing(folder):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--output={folder} is a file: name a folder.")
        folder.mkdir(parents=True, exist_ok=True)
    items = products.items[1:].cpu().numpy()
    return [
        *_write(folder / "items", "item_id", loaded.item_tokens[1:], items),
        *_write(folder / "users", "user_id", [loaded.user_tokens[user] for user in users], table),
    ]


def _write(stem: Path, name: str, tokens: list[str], vectors: np.ndarray) -> list[Path]:
    """The same table as .npz and as .parquet."""
    archive, table = stem.with_suffix(".npz"), stem.with_suffix(".parquet")
    with replacing(archive) as part, part.open("wb") as file:
        np.savez(file, **{name: np.array(tokens, dtype=str), "feat": vectors})  # type: ignore[arg-type]
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    with replacing(table) as part:
        pyarrow.parquet.write_table(pa.table({name: pa.array(tokens, pa.string()), "vector": column}), part)
    return [archive, table]


def training_histories(loaded: LoadedModel) -> Histories:
    """Each user's training items, newest last."""
    train = loaded.split.train
    sequences: list[list[int]] = [[] for _ in loaded.user_tokens]
    items, columns = train.items.tolist(), (train.users, train.targets, train.start, train.stop)
    for user, target, start, stop in zip(*(column.tolist() for column in columns), strict=True):
        if stop - start >= len(sequences[user]):
            sequences[user] = [*items[start:stop], target]
    return histories_of(sequences)
