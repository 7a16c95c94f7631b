"""Make the teacher cache of a run, or find what is stored of it: the way from fitted teachers to `TeacherCache`.

How a teacher's part is made is in `vectors` and in `stored_scores`.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recbole.config import Config
from torch import Tensor

from recbole_prmkd.recbole_host.keys import kind_of
from recbole_prmkd.storage import store
from recbole_prmkd.teacher_cache import stored_scores, vectors
from recbole_prmkd.teacher_cache.scores import CachedTeacher, Shuffled, TeacherCache, Trust
from recbole_prmkd.teachers.data import TeacherData, shuffled_items
from recbole_prmkd.teachers.fit import FittedTeacher


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
    return form.CACHED.of(name, temperature, holdout, array, run["device"])


def open_cache(
    teachers: Sequence[FittedTeacher],
    folders: Sequence[store.StoredFolder],
    data: TeacherData,
    run: Config,
    trust: Trust | None = None,
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
    return cache_of(parts, data.canonical, run, trust)


def cache_of(
    teachers: Sequence[CachedTeacher], canonical: Tensor, run: Config, trust: Trust | None = None
) -> TeacherCache:
    """The cache of these teachers for the student's items; those that `kd_shuffled_teachers` names, for other items.

    canonical: [n_items] student's item id -> canonical id.
    """
    orders = [shuffled_items(run, len(canonical), teacher.name) for teacher in teachers]
    shown = [
        teacher if order is None else Shuffled(teacher, order.to(run["device"]))
        for teacher, order in zip(teachers, orders, strict=True)
    ]
    return TeacherCache(shown, canonical, run["device"], trust)
