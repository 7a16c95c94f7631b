"""The teacher cache: what the teachers say of a training split, made once, from which scores of any candidates follow.

A teacher that compares vectors leaves its vectors (`vectors`). One that scores otherwise leaves its largest scores of
each training example (`stored_scores`). `TeacherCache` asks both in one way.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from recbole.config import Config
from torch import Tensor

from recbole_prmkd.recbole_host.keys import kind_of
from recbole_prmkd.storage import store
from recbole_prmkd.teacher_cache import stored_scores, vectors
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.fit import FittedTeacher
from recbole_prmkd.teachers.holdout import kept, popularity


class CachedTeacher(Protocol):
    """One teacher's part of the cache.

    name, temperature (of its softmax), holdout (its score there); digest: of all that its scores depend on.
    """

    @property
    def name(self) -> str: ...
    @property
    def temperature(self) -> float: ...
    @property
    def holdout(self) -> float: ...
    @property
    def digest(self) -> str: ...

    def scores(self, examples: np.ndarray, candidates: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """Fill `out`, [B, C] for each of the candidates, [C] or [B, C], in canonical ids; NaN: not covered."""


class TeacherCache:
    """Scores of T teachers for any training examples and candidates.

    Attributes:
        teachers: T `CachedTeacher`, in the order of `kd_teachers`; device: of the scores; n_items: with PAD.
        temperature: [T] of each teacher's softmax; validation: [T] each teacher's holdout score; prior: [T] factor on
            its confidence.
        canonical: [n_items] student's item id -> canonical id, or the id of another item (`kd_shuffled_teachers`).
    """

    def __init__(
        self,
        teachers: Sequence[CachedTeacher],
        canonical: Tensor,
        device: torch.device,
        priors: Sequence[float] | None = None,
    ) -> None:
        """canonical: [n_items] student's item id -> canonical id."""
        self.teachers, self.device = teachers, device
        self.canonical = canonical.to(device)
        self.n_items = len(canonical)
        self.temperature = torch.tensor([teacher.temperature for teacher in teachers], device=device)  # [T]
        self.prior = torch.tensor(priors or [1.0] * len(teachers), device=device)  # [T]
        self.validation = torch.tensor([teacher.holdout for teacher in teachers], device=device)  # [T]

    def scores(self, examples: Tensor, *candidates: Tensor) -> Tensor:
        """Each teacher's scores of the candidates; NaN where it does not cover the example or the candidate.

        Args:
            examples: [B] example numbers.
            candidates: each [C] for all examples or [B, C] per example, in the student's item ids.
        Returns:
            [T, B, sum of C] float32, the candidates beside each other.
        """
        columns = [self.canonical[part] for part in candidates]
        widths = [part.shape[-1] for part in columns]
        numbers = examples.cpu().numpy()
        scores = torch.empty(len(self.teachers), len(examples), sum(widths), device=self.device)
        for out, teacher in zip(scores, self.teachers, strict=True):
            teacher.scores(numbers, columns, out.split(widths, dim=1))
        return scores


def form_of(scores_all_items: bool) -> Any:
    """The module that makes and reads a teacher's part: `vectors` or `stored_scores`."""
    return stored_scores if scores_all_items else vectors


def build_or_load(teacher: FittedTeacher, data: TeacherData, run: Config) -> tuple[store.StoredFolder, bool]:
    """What is stored of the teacher for the items and training examples, made now where none matches; and if reused.

    The identity records teacher weights and side information, item numbering, examples, and how histories were cut.
    """
    form = form_of(teacher.model.scores_all_items)
    root = Path(run["kd_cache_dir"]) / run["dataset"]
    identity = store.identity(
        code=f"{teacher.model.code_version} cache {form.VERSION}",
        teacher=teacher.digest,
        id_map=store.digest(data.item_tokens),
        rows=data.train.digest(),
        max_length=teacher.config["MAX_ITEM_LIST_LENGTH"],
        **form.identity(teacher, data, run),
    )
    kind = f"knowledge-{kind_of(teacher.name)}"
    stored = None if run["kd_rebuild"] else store.find(root, kind, identity)
    if stored is not None:
        return stored, True
    started = time.time()
    with form.made(teacher, data, root, kind, identity, run["kd_rebuild"]) as (arrays, counts):
        return store.save(root, kind, identity, arrays, {"seconds": time.time() - started, **counts}), False


def opened(
    name: str, form: Any, temperature: float, holdout: float, array: Callable[[str], np.ndarray], run: Config
) -> CachedTeacher:
    """A teacher's part from its stored arrays, `array(part)` for each of `form.PARTS`; form: what `form_of` gives."""
    return form.opened(name, temperature, holdout, array, run["device"])


def open_cache(
    teachers: Sequence[FittedTeacher],
    folders: Sequence[store.StoredFolder],
    data: TeacherData,
    run: Config,
) -> TeacherCache:
    """The cache of all teachers, mapped from disk."""
    parts = [
        opened(
            teacher.name,
            form_of(teacher.model.scores_all_items),
            teacher.model.temperature,
            teacher.holdout,
            folder.array,
            run,
        )
        for teacher, folder in zip(teachers, folders, strict=True)
    ]
    ranked = {teacher.name: teacher.ranked for teacher in teachers}
    priors = kept(list(ranked), ranked, popularity(data), run["kd_teacher_check"])
    return cache_of(parts, data.canonical, run, [priors[part.name] for part in parts])


def cache_of(
    teachers: Sequence[CachedTeacher], canonical: Tensor, run: Config, priors: Sequence[float] | None = None
) -> TeacherCache:
    """The cache of these teachers for the student's items; with `kd_shuffled_teachers`, for other items.

    canonical: [n_items] student's item id -> canonical id. priors: [T] as `TeacherCache` has them.
    """
    if run["kd_shuffled_teachers"]:  # one order for all teachers, so that they agree as before
        order = torch.randperm(len(canonical) - 1, generator=torch.Generator().manual_seed(run["seed"]))
        canonical = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + order])[canonical]
    return TeacherCache(teachers, canonical, run["device"], priors)
