"""Students in their trainers, stock and distilled from teachers of random vectors, which cost what real ones cost."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import get_model, get_trainer, init_seed

from recbole_prmkd.data.examples import EXAMPLE
from recbole_prmkd.data.split import Split
from recbole_prmkd.distil.trainer import distillation_trainer
from recbole_prmkd.preparation import Prepared
from recbole_prmkd.recbole_host.run_files import quiet_trainer
from recbole_prmkd.teacher_cache.scores import CachedVectors, TeacherCache
from recbole_prmkd.training import adapted

WIDTHS = (300, 384, 300)  # UniSRec, Recformer from MiniLM, UniM2Rec


class First:
    """A loader's first batches; counts the training examples in them."""

    shuffle = False

    def __init__(self, loader: Any, number: int | None = None) -> None:
        self.loader, self.examples = loader, 0
        self.number = len(loader) if number is None else min(number, len(loader))

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[Any]:
        self.examples = 0
        for batch in itertools.islice(self.loader, self.number):
            self.examples += len(torch.unique(batch[EXAMPLE]))
            yield batch


def student(config: Config, split: Split, name: str | None = None) -> AbstractRecommender:
    """An untrained student, always with the same weights; name: another model with the same settings."""
    init_seed(config["seed"], True)
    return get_model(name or config["model"])(config, split.train_data._dataset).to(config["device"])


def stock(config: Config, model: AbstractRecommender, folder: Path) -> Any:
    """RecBole's own trainer of the student."""
    return quiet_trainer(get_trainer(config["MODEL_TYPE"], config["model"]), config, model, folder)


@contextmanager
def distilled(
    config: Config, split: Split, model: AbstractRecommender, folder: Path, widths: Sequence[int] = WIDTHS
) -> Iterator[tuple[Any, Any]]:
    """Inside, the student's trainer with a KD loss from random teachers, and its training loader."""
    host = distillation_trainer(get_trainer(config["MODEL_TYPE"], config["model"]))
    trainer = quiet_trainer(host, config, model, folder)
    cache = random_cache(len(split.item_tokens) + 1, len(split.train), widths, config["device"])
    with adapted(config, Prepared(split, cache), trainer) as train_data:
        yield trainer, train_data


def random_cache(n_items: int, examples: int, widths: Sequence[int], device: torch.device) -> TeacherCache:
    """A teacher of each width, for items in their own numbering and training examples."""
    rng = np.random.default_rng(0)

    def unit(number: int, width: int) -> np.ndarray:
        vectors = rng.standard_normal((number, width), dtype=np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)

    teachers = [
        CachedVectors(f"T{i}", 0.07, 0.05, torch.from_numpy(unit(n_items, width)).to(device), unit(examples, width))
        for i, width in enumerate(widths)
    ]
    return TeacherCache(teachers, torch.arange(n_items), device)
