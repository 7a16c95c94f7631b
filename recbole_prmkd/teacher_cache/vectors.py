"""The teacher cache of a teacher whose score is the cosine, or else the product, of two vectors.

Two arrays in half precision, memory-mapped: unit item vectors [n_items, D] in canonical item order, and unit vectors of
the training examples' histories [N, D] in the student's order. Scores of any candidates are their product, so that
nothing grows with users x items and any in-batch candidates are exact. A zero vector means that the teacher does not
cover that example or item. Of a teacher whose score is the product (`Teacher.cosine` is false) both arrays are in
single precision, and no vector is scaled.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor
from torch.nn import functional

from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.storage import encoding_jobs, store
from recbole_prmkd.students.causal_check import why_not_shared
from recbole_prmkd.students.windows import WindowLoader, shared_prefixes
from recbole_prmkd.teacher_cache.scores import CachedVectors
from recbole_prmkd.teachers import Teacher
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.fit import FittedTeacher

VERSION = "1.0"  # raise it when the same teacher and examples give other stored vectors
CACHED, PARTS = CachedVectors, ("items", "rows")
POSITIONS = 1 << 15  # history positions encoded at a time, padding included


def identity(teacher: FittedTeacher, data: TeacherData, run: Config) -> dict[str, Any]:
    """What the arrays depend on beside the teacher, the items and the examples."""
    entries = {"context": teacher.config["kd_window_context"], **encoding_jobs.precision_entry(run)}
    if not teacher.model.cosine:
        entries["score"] = "product"
    if teacher.model.reads_examples:
        entries["users"] = store.digest([data.train.users])
    return entries


@contextmanager
def made(
    teacher: FittedTeacher, data: TeacherData, root: Path, kind: str, identity: Mapping[str, Any], rebuild: bool
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, int]]]:
    """Inside, the arrays to store, and how many training examples and items are not covered."""
    label, number = f"{teacher.name} histories", len(data.train)
    with encoding_jobs.resumable(
        root, kind, identity, number, label=label, unit="example", dtype=_dtype(teacher.model), rebuild=rebuild
    ) as work:
        items, histories = _encode(teacher, data.train, work)
        yield (
            {"items": items, "rows": histories},
            {"unknown_rows": _not_covered(histories), "unknown_items": _not_covered(items[1:])},
        )


@torch.no_grad()
def _encode(teacher: FittedTeacher, train: Examples, work: encoding_jobs.EncodingJob) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in half precision: items [n_items, D] and histories [N, D]; zero where they are not covered."""
    model, config = teacher.model.eval(), teacher.config
    with encoding_jobs.autocast(config):
        items = model.encode_items()  # [n_items, D]
    histories = encode_examples(model, config, train, items, work)
    table = _covered(model, items)
    return table, histories if histories.shape[1] else np.zeros((len(train), table.shape[1]), table.dtype)


@torch.no_grad()
def unit_items(teacher: FittedTeacher) -> Tensor:
    """A teacher's item vectors as the cache has them, by canonical id: [n_items, D] float32 on the CPU."""
    with encoding_jobs.autocast(teacher.config):
        items = teacher.model.eval().encode_items()
    return torch.from_numpy(_covered(teacher.model, items)).float()


def encode_examples(
    model: Teacher, config: Config, train: Examples, items: Tensor, work: encoding_jobs.EncodingJob
) -> np.ndarray:
    """Unit vectors of the examples' histories, [N, D]: in windows where the teacher allows it, else by length.

    Args:
        items: what the teacher's `encode_items` gave, [n_items, D].
        work: the encoding job to fill, in its own precision.
    """
    shared = not model.reads_examples and why_not_shared(model, config, train) is None
    batches, batch_of = _windows(train, config) if shared else _by_length(train, config, model.reads_examples)

    @torch.no_grad()
    def encode_batch(index: Tensor) -> np.ndarray:
        batch = batch_of(index)
        with shared_prefixes(model) if shared else nullcontext(), encoding_jobs.autocast(config):
            vectors = _stored(model, model.encode_batch(batch.to(config["device"]), items))  # [R, D]
        # Of equal histories only the first is in the batch; the examples after it get its vector.
        position = torch.isin(index, batch[EXAMPLE]).cumsum(0) - 1  # [len(index)]
        return vectors[position.numpy()]

    return work.fill(batches, encode_batch)


Batches = tuple[
    Sequence[Tensor], Callable[[Tensor], Interaction]
]  # examples of each batch, and what makes it from them


def _windows(train: Examples, config: Config) -> Batches:
    """Batches of windows; each example with a history is in one of them."""
    loader = WindowLoader(config, None, train)
    usable = torch.nonzero(train.lengths > 0).squeeze(1)
    batches = [usable[positions] for positions in loader.batches()]
    return batches, lambda index: loader.batch(torch.searchsorted(usable, index))


def _by_length(train: Examples, config: Config, reads_examples: bool) -> Batches:
    """Batches of similar lengths, each padded to its own maximum; of equal histories in a batch the first is encoded.

    reads_examples: every example for itself, those without a history too.
    """
    max_length, item = config["MAX_ITEM_LIST_LENGTH"], config["ITEM_ID_FIELD"]
    size = max(1, POSITIONS // max_length)

    def batch_of(index: Tensor) -> Interaction:
        item_seq, item_seq_len = train.histories(index, max_length)  # [B, L], [B]
        first = torch.ones(len(index), dtype=torch.bool)
        if not reads_examples:
            first[1:] = (item_seq[1:] != item_seq[:-1]).any(dim=1)
        return Interaction(
            {
                item + config["LIST_SUFFIX"]: item_seq[first],
                config["ITEM_LIST_LENGTH_FIELD"]: item_seq_len[first],
                config["USER_ID_FIELD"]: train.users[index[first]],
                item: train.targets[index[first]],
                EXAMPLE: index[first],
            }
        )

    if reads_examples:
        return torch.argsort(train.lengths, stable=True).split(size), batch_of
    usable = torch.nonzero(train.lengths > 0).squeeze(1)
    same = train.select(usable).history_numbers(max_length)
    return [usable[positions] for positions in encoding_jobs.equal_together(same, size)], batch_of


def _covered(model: Teacher, items: Tensor) -> np.ndarray:
    """Item vectors for the cache, zero where the teacher does not cover the item."""
    table: np.ndarray = _stored(model, items).astype(_dtype(model))
    table[~model.covered_items().numpy()] = 0
    return table


def _stored(model: Teacher, vectors: Tensor) -> np.ndarray:
    """The vectors as they are stored, unit ones for cosines; a non-finite vector becomes zero, that is not covered."""
    stored = functional.normalize(vectors.float(), dim=-1) if model.cosine else vectors.float().clone()
    stored[~torch.isfinite(stored).all(dim=-1)] = 0
    return stored.cpu().numpy()


def _dtype(model: Teacher) -> type:
    return np.float16 if model.cosine else np.float32


def _not_covered(vectors: np.ndarray) -> int:
    return int((vectors == 0).all(axis=1).sum())
