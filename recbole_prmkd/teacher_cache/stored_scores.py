"""The teacher cache of a teacher that scores all items at once: the largest scores of each training example.

Per example [N] the M items with the largest scores, by ascending canonical id, and these scores; for all other items
one score, under which they have together the probability that the teacher gives them. So the soft targets of stored
items are exact, and nothing grows with users x items. NaN: the teacher does not cover the example. Our choice.

M is `stored_scores` of the teacher, and less where that many of all examples would exceed `LARGEST` bytes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor
from tqdm import tqdm

from recbole_prmkd.storage import store
from recbole_prmkd.teacher_cache.scores import CachedScores
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.fit import FittedTeacher
from recbole_prmkd.teachers.linear import Linear

VERSION = "1.0"  # raise it when the same teacher and examples give other stored scores
CACHED, PARTS = CachedScores, ("top", "scores", "rest", "covered")
LARGEST = 3 << 30  # bytes of the stored scores of all examples: 256 items each of 2 million, 53 each of 10 million
_FEWEST = 16  # items of an example, whatever that needs
_ITEM, _EXAMPLE = 6, 4  # bytes of an item and its score, and of the score of the rest


def width(wanted: int, examples: int) -> int:
    """How many items of an example are stored when so many are wanted and there are so many examples."""
    room = (LARGEST // max(examples, 1) - _EXAMPLE) // _ITEM
    return int(min(wanted, max(_FEWEST, room)))


def identity(teacher: FittedTeacher, data: TeacherData, run: Config) -> dict[str, Any]:
    """What the arrays depend on beside the teacher, the items and the examples."""
    stored = width(teacher.config["stored_scores"], len(data.train))
    return {"stored": stored, "users": store.digest([data.fit.users, data.train.users])}


@contextmanager
def made(
    teacher: FittedTeacher, data: TeacherData, root: Path, kind: str, identity: Mapping[str, Any], rebuild: bool
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, int]]]:
    """Inside, the arrays to store, and how many training examples and items are not covered."""
    store.check_room(root)
    model, number = teacher.model, len(data.train)
    covered = model.covered_items()
    wanted = min(teacher.config["stored_scores"], len(covered) - 1)
    stored = width(wanted, number)
    if stored < wanted:
        getLogger().info(
            f"{teacher.name}: {stored} scores of each training example are stored, not {wanted}, since there are "
            f"{number:,} examples. The other items share the rest of the probability."
        )
    top = np.zeros((number, stored), dtype=np.int32)
    scores = np.full((number, stored), np.nan, dtype=np.float16)
    rest = np.full(number, np.nan, dtype=np.float32)
    with tqdm(total=number, desc=f"{teacher.name} scores", unit="example") as bar:
        for index, kept in _kept(model, data, stored):
            bar.update(len(index))
            row = index.numpy()  # numpy takes a tensor of one number for a number, not for a list of one
            top[row], scores[row], rest[row] = (part.numpy() for part in kept)
    arrays: dict[str, np.ndarray] = {"top": top, "scores": scores, "rest": rest, "covered": covered.numpy()}
    counts = {"unknown_rows": int(np.isnan(rest).sum()), "unknown_items": int((~covered[1:]).sum())}
    yield arrays, counts


def _kept(model: Teacher, data: TeacherData, number: int) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]]:
    """Numbers [B] of training examples and what to keep of their scores, as `largest` gives it."""
    if isinstance(model, Linear):  # needs no dense scores
        yield from model.largest_scores(data, number)
    else:
        for index, every in model.training_scores(data):
            yield index, largest(every.cpu(), number, model.temperature)


def largest(scores: Tensor, number: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of scores [B, n_items], NaN: not covered, the items and scores to keep, [B, M] both, and of the rest, [B].

    The score of the rest is temperature x log mean exp(score / temperature) of the items that are not kept, or the
    smallest kept score where all are.
    """
    missing = scores.isnan()
    known = scores.masked_fill(missing, -torch.inf)  # [B, n_items]
    values, items = known.topk(number, dim=1)  # [B, M]
    left = known.scatter(1, items, -torch.inf) / temperature
    count = (left > -torch.inf).sum(1)  # [B]
    rest = temperature * (left.logsumexp(1) - count.clamp(min=1).log())
    smallest = values.masked_fill(values == -torch.inf, torch.inf).amin(1)
    rest = torch.where(count > 0, rest, smallest)
    rest[missing.all(dim=1)] = torch.nan
    items, order = items.sort(dim=1)
    values = values.gather(1, order)
    return items.int(), values.masked_fill(values == -torch.inf, torch.nan).half(), rest
