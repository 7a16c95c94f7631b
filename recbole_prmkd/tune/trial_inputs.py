"""Data and teacher caches, made once by the sweep and given to its trials.

The split travels through Ray's object store, one copy a node. A teacher's cache is mapped from its stored folder on the
nodes that see it; where there are several nodes its arrays lie in the object store too, for those that do not.
A trial never makes a teacher.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.utils import init_seed

from recbole_prmkd.data.split import Split
from recbole_prmkd.errors import UserError
from recbole_prmkd.preparation import Prepared
from recbole_prmkd.recbole_host.keys import has_teachers
from recbole_prmkd.recbole_host.models import named_as_base
from recbole_prmkd.teacher_cache.build import cache_of, form_of, opened
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.holdout import Ranked
from recbole_prmkd.teachers.item_start import useful_source
from recbole_prmkd.teachers.trust import decided


@dataclass(frozen=True)
class GivenTeacher:
    """One teacher's cache.

    scores_all_items: its form; ranked: on the holdout; folder: where it is stored; arrays: its parts in the object
    store, if they are there.
    """

    name: str
    scores_all_items: bool
    temperature: float
    holdout: float
    ranked: Ranked
    folder: Path
    arrays: Mapping[str, Any]

    def array(self, part: str) -> np.ndarray:
        """One array, mapped."""
        file = self.folder / f"{part}.npy"
        if file.is_file():
            return np.load(file, mmap_mode="r", allow_pickle=False)
        if part in self.arrays:
            return ray.get(self.arrays[part])
        raise UserError(f"This node has no {file}: put kd_cache_dir on storage that all nodes share.")


@dataclass(frozen=True)
class TrialInputs:
    """What trials start from. split: bytes in the object store; start_vectors: by what `source_of` names."""

    split: Any
    teachers: Mapping[str, GivenTeacher]
    start_vectors: Mapping[str, Any]

    def prepared(self, config: Config) -> Prepared:
        """A trial's own copy of the data, and the teacher cache that its settings ask for."""
        split = unpacked(ray.get(self.split), config)
        wanted = config["kd_teachers"] if has_teachers(config) else []
        cache = None
        ranked = {name: self.teachers[name].ranked for name in wanted}
        if wanted:
            data = teacher_data(split, config["kd_teacher_seed"])
            names, trust = decided(config, ranked, data)
            given = [self.teachers[name] for name in names]
            parts = [
                opened(each.name, form_of(each.scores_all_items), each.temperature, each.holdout, each.array, config)
                for each in given
            ]
            cache = cache_of(parts, data.canonical, config, trust)
        start = useful_source(config, ranked, split)
        vectors = None if start == "none" else torch.from_numpy(np.array(ray.get(self.start_vectors[start])))
        return Prepared(split, cache, start_vectors=vectors)


def make_trial_inputs(prepared: Prepared, start_vectors: Mapping[str, torch.Tensor]) -> TrialInputs:
    """Put what the sweep has prepared where its trials find it; Ray must be running."""
    several = sum(node["Alive"] for node in ray.nodes()) > 1
    given = [
        GivenTeacher(
            teacher.name,
            teacher.model.scores_all_items,
            teacher.model.temperature,
            teacher.holdout,
            teacher.ranked,
            folder.path,
            {
                part: ray.put(np.asarray(folder.array(part)))
                for part in (form_of(teacher.model.scores_all_items).PARTS if several else ())
            },
        )
        for teacher, folder in zip(prepared.teachers, prepared.folders, strict=True)
    ]
    return TrialInputs(
        split=ray.put(packed(prepared.split)),
        teachers={teacher.name: teacher for teacher in given},
        start_vectors={name: ray.put(vectors.numpy()) for name, vectors in start_vectors.items()},
    )


def packed(split: Split) -> bytes:
    """The split as bytes: the data sets that RecBole made, and the examples; loaders are made anew by each trial."""
    loaders = (split.train_data, split.valid_data, split.test_data)
    others = (split.parts, split.item_tokens, split.user_tokens)
    return pickle.dumps((split.dataset, [loader._dataset for loader in loaders], others))


def unpacked(content: bytes, config: Config) -> Split:
    """A split of its own for a run with this configuration: RecBole's loaders over the data sets as they were made."""
    dataset, built, (parts, *tokens) = pickle.loads(content)
    for part in (dataset, *built):
        part.config = config
    init_seed(config["seed"], config["reproducibility"])
    dataset.build = lambda: built  # the split was made before
    with named_as_base(config):
        train_data, valid_data, test_data = data_preparation(config, dataset)
    del dataset.build
    return Split(dataset, train_data, valid_data, test_data, lambda: parts, *tokens)
