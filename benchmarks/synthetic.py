"""Teachers of random vectors: they cost what real ones cost."""

from collections.abc import Sequence

import numpy as np
import torch

from recbole_prmkd.teacher_cache.scores import CachedTeacher, TeacherCache


def random_knowledge(n_items: int, rows: int, widths: Sequence[int], device: torch.device) -> TeacherCache:
    """A teacher of each width, for items in their own numbering and training rows, as the cache would hold them."""
    rng = np.random.default_rng(0)

    def unit(number: int, width: int) -> np.ndarray:
        table = rng.standard_normal((number, width), dtype=np.float32)
        return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float16)

    teachers = [
        CachedTeacher(f"T{i}", 0.07, 0.05, torch.from_numpy(unit(n_items, width)).to(device), unit(rows, width))
        for i, width in enumerate(widths)
    ]
    return TeacherCache(teachers, torch.arange(n_items), device)
