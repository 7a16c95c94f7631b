"""Data and knowledge, made once by the sweep and handed to its trials.

The split travels through Ray's object store, one copy a node. Knowledge is mapped from its stored folder where every
node sees it (shared storage, or one node), else its arrays lie in the object store, which trials of a node map too.
A trial never makes a teacher: one that asks for knowledge it was not handed ends with a sentence.
"""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from recbole.config import Config
from recbole.data import data_preparation
from recbole.utils import init_seed

from recbole_prmkd.data.split import Split
from recbole_prmkd.errors import UserError
from recbole_prmkd.preparation import Prepared
from recbole_prmkd.students.warm_start import source_of
from recbole_prmkd.teacher_cache.scores import CachedTeacher, cache_of
from recbole_prmkd.teacher_cache.store import MANIFEST, StoredFolder
from recbole_prmkd.teachers.data import teacher_data

_PARTS = ("items", "rows")  # arrays of a knowledge folder


@dataclass(frozen=True)
class HandedTeacher:
    """One teacher's knowledge: its folder, or the two arrays of it in the object store."""

    temperature: float
    holdout: float
    folder: Path
    arrays: Mapping[str, Any] | None

    def array(self, part: str) -> np.ndarray:
        """One array, mapped."""
        if self.arrays is not None:
            return ray.get(self.arrays[part])
        file = self.folder / f"{part}.npy"
        if not file.is_file():
            raise UserError(f"This node has no {file}: put kd_cache_dir on storage that all nodes share.")
        return np.load(file, mmap_mode="r", allow_pickle=False)


@dataclass(frozen=True)
class TrialInputs:
    """What trials start from. split: bytes in the object store; start_vectors: by what `source_of` names."""

    split: Any
    teachers: Mapping[str, HandedTeacher]
    start_vectors: Mapping[str, Any]

    def prepared(self, config: Config) -> Prepared:
        """A trial's own copy of the data, and the knowledge that its settings ask for."""
        split = unpacked(ray.get(self.split), config)
        wanted = config["kd_teachers"] if config["kd"] != "none" else []
        missing = [name for name in wanted if name not in self.teachers]
        if missing:
            raise UserError(
                f"The sweep made no knowledge of {', '.join(missing)}: name them in kd_teachers when you start it."
            )
        knowledge = None
        if wanted:
            canonical = teacher_data(split, config["kd_teacher_seed"]).canonical
            handed = [(name, self.teachers[name]) for name in wanted]
            opened = [
                CachedTeacher.of(name, one.temperature, one.holdout, one.array, config["device"])
                for name, one in handed
            ]
            knowledge = cache_of(opened, canonical, config)
        start = source_of(config)
        vectors = None if start == "none" else torch.from_numpy(np.array(ray.get(self.start_vectors[start])))
        return Prepared(split, knowledge, start_vectors=vectors)


def make_trial_inputs(prepared: Prepared, start_vectors: Mapping[str, torch.Tensor]) -> TrialInputs:
    """Put what the sweep has prepared where its trials find it; Ray must be running."""
    shared = _seen_everywhere([folder.path / MANIFEST for folder in prepared.folders])
    return TrialInputs(
        split=ray.put(packed(prepared.split)),
        teachers={
            teacher.name: HandedTeacher(
                temperature=teacher.model.temperature,
                holdout=teacher.holdout,
                folder=folder.path,
                arrays=None if shared else _put(folder),
            )
            for teacher, folder in zip(prepared.teachers, prepared.folders, strict=True)
        },
        start_vectors={name: ray.put(vectors.numpy()) for name, vectors in start_vectors.items()},
    )


def packed(split: Split) -> bytes:
    """The split as bytes: the data sets that RecBole made, and the rows; loaders are made anew by each trial."""
    loaders = (split.train_data, split.valid_data, split.test_data)
    return pickle.dumps(
        {
            "dataset": split.dataset,
            "parts": [loader._dataset for loader in loaders],
            "rows": [split.train, split.future, split.valid, split.test],
            "tokens": [split.item_tokens, split.user_tokens],
        },
        protocol=pickle.HIGHEST_PROTOCOL,
    )


def unpacked(content: bytes, config: Config) -> Split:
    """A split of its own for a run with this configuration: RecBole's loaders over the data sets as they were made."""
    stored = pickle.loads(content)
    dataset, parts = stored["dataset"], stored["parts"]
    for part in (dataset, *parts):
        part.config = config
    init_seed(config["seed"], config["reproducibility"])
    dataset.build = lambda: parts  # the split was made before
    train_data, valid_data, test_data = data_preparation(config, dataset)
    del dataset.build
    train, future, valid, test = stored["rows"]
    items, users = stored["tokens"]
    return Split(dataset, train_data, valid_data, test_data, train, future, valid, test, items, users)


def _put(folder: StoredFolder) -> dict[str, Any]:
    return {part: ray.put(np.asarray(folder.array(part))) for part in _PARTS}


def _seen_everywhere(files: Sequence[Path]) -> bool:
    """Whether each node of the cluster finds these files."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1:
        return True
    found = [
        ray.remote(_all_exist)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
        .remote(list(files))
        for node in nodes
    ]
    return all(ray.get(found))


def _all_exist(files: list[Path]) -> bool:
    return all(file.is_file() for file in files)
