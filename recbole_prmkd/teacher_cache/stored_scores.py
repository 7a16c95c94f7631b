"""The teacher cache of a teacher that scores all items at once: the largest scores of each training example.

Per example [N] the M items with the largest scores, by ascending canonical id, and these scores; for all other items
one score, under which they have together the probability that the teacher gives them. So the soft targets of stored
items are exact, and nothing grows with users x items. NaN: the teacher does not cover the example. Our choice.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor
from tqdm import tqdm

from recbole_prmkd.storage import store
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.fit import FittedTeacher

VERSION = "1.0"  # raise it when the same teacher and examples give other stored scores
PARTS = ("top", "scores", "rest", "covered")


@dataclass(frozen=True)
class CachedScores:
    """One teacher's stored scores.

    top: [N, M] int32, canonical ids in ascending order; top_scores: [N, M] float16; rest: [N] float32, of all other
    items; memory-mapped. covered: [n_items] bool.
    """

    name: str
    temperature: float
    holdout: float
    top: np.ndarray
    top_scores: np.ndarray
    rest: np.ndarray
    covered: Tensor

    @cached_property
    def digest(self) -> str:
        """Hash of all arrays, on which the scores depend and nothing else."""
        return store.digest([self.top, self.top_scores, self.rest, self.covered])

    def scores(self, examples: np.ndarray, candidates: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """The stored scores of the candidates; NaN where the example or the item is not covered.

        Args:
            examples: [B] example numbers.
            candidates: each [C] for all examples or [B, C] per example, in canonical ids.
            out: what to fill, [B, C] for each.
        """
        device = self.covered.device
        top = torch.from_numpy(self.top[examples]).to(device)  # [B, M]
        stored = torch.from_numpy(self.top_scores[examples]).to(device).float()  # [B, M]
        rest = torch.from_numpy(self.rest[examples]).to(device)[:, None]  # [B, 1]
        for part, block in zip(candidates, out, strict=True):
            item = part.expand(block.shape).int().contiguous()  # [B, C]
            position = torch.searchsorted(top, item).clamp_(max=top.shape[1] - 1)  # [B, C]
            torch.where(top.gather(1, position) == item, stored.gather(1, position), rest, out=block)
            block.masked_fill_(~self.covered[part], torch.nan)


def opened(
    name: str, temperature: float, holdout: float, array: Callable[[str], np.ndarray], device: torch.device
) -> CachedScores:
    """From the stored arrays, `array(part)` for each of `PARTS`."""
    top, scores, rest, covered = map(array, PARTS)
    return CachedScores(name, temperature, holdout, top, scores, rest, torch.from_numpy(np.array(covered)).to(device))


def identity(teacher: FittedTeacher, data: TeacherData, run: Config) -> dict[str, Any]:
    """What the arrays depend on beside the teacher, the items and the examples."""
    return {"stored": teacher.config["stored_scores"], "users": store.digest([data.fit.users, data.train.users])}


@contextmanager
def made(
    teacher: FittedTeacher, data: TeacherData, root: Path, kind: str, identity: Mapping[str, Any], rebuild: bool
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, int]]]:
    """Inside, the arrays to store, and how many training examples and items are not covered."""
    store.check_room(root)
    model, number = teacher.model, len(data.train)
    covered = model.covered_items()
    width = min(teacher.config["stored_scores"], len(covered) - 1)
    top = np.zeros((number, width), dtype=np.int32)
    scores = np.full((number, width), np.nan, dtype=np.float16)
    rest = np.full(number, np.nan, dtype=np.float32)
    with tqdm(total=number, desc=f"{teacher.name} scores", unit="example") as bar:
        for index, every in model.training_scores(data):
            bar.update(len(index))
            kept = largest(every.cpu(), width, model.temperature)
            top[index], scores[index], rest[index] = (part.numpy() for part in kept)
    arrays = {"top": top, "scores": scores, "rest": rest, "covered": covered.numpy()}
    counts = {"unknown_rows": int(np.isnan(rest).sum()), "unknown_items": int((~covered[1:]).sum())}
    yield arrays, counts


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
