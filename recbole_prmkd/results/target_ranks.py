"""Where each test example's target stands in the ranking: a comparison reads from it for whom distillation helps.

Written only where `kd_save_ranks` asks for it, as `test_ranks.npz` beside result.json, one entry per test example [N]:

    user, item    internal ids of the example's user and target
    history       number of the user's items before the example
    popularity    number of training examples with the same target
    rank          rank of the target in RecBole's own ranking, 1 the first
    rank_unseen   the same with the user's earlier items left out

Scores are those of the evaluation, computed once more: RecBole's own evaluation is not touched.
"""

from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.trainer import Trainer
from recbole.utils import ModelType
from torch import Tensor

from recbole_prmkd.data.split import Split
from recbole_prmkd.results.evaluation import leaves_out, unseen_loader
from recbole_prmkd.results.run_folder import RANKS

PARTS = ("user", "item", "history", "popularity", "rank", "rank_unseen")


def save_ranks(trainer: Trainer, config: Config, split: Split, folder: Path) -> None:
    """Write `test_ranks.npz` into the folder, or log why there can be none.

    Args:
        trainer: holds the student with its best weights in place.
    """
    reason = why_no_ranks(config, split)
    if reason is not None:
        getLogger().warning(f"No {RANKS}: {reason}.")
        return
    arrays: dict[str, Any] = count_ranks(trainer, config, split)
    np.savez_compressed(folder / RANKS, **arrays)


def why_no_ranks(config: Config, split: Split) -> str | None:
    """What keeps the targets' ranks from being counted, or None."""
    if not config["single_spec"]:
        return "each of several processes ranks a part of the examples"
    if not isinstance(split.test_data, FullSortEvalDataLoader):
        return "the test ranks samples, not all items"
    return None


@torch.no_grad()
def count_ranks(trainer: Trainer, config: Config, split: Split) -> dict[str, np.ndarray]:
    """The arrays of `test_ranks.npz`, in the order of RecBole's own test loader."""
    trainer.model.eval()
    own = ranks_of(trainer, split.test_data)
    unseen = own if leaves_out(config, split.test_data) else unseen_ranks(trainer, config, split)
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        history = split.test.lengths
    else:  # there all of a user's test examples have the same history
        length_of = torch.zeros(int(split.test.users.max()) + 1, dtype=torch.int64)
        length_of[split.test.users] = split.test.lengths
        history = length_of[own[0]]
    user, item, rank = own
    count = torch.bincount(split.train.targets, minlength=len(split.item_tokens) + 1)
    arrays = (user, item, history, count[item], rank, unseen[2])
    return {name: part.numpy() for name, part in zip(PARTS, arrays, strict=True)}


def unseen_ranks(trainer: Any, config: Config, split: Split) -> tuple[Tensor, Tensor, Tensor]:
    """`ranks_of` the test examples with the user's earlier items left out."""
    loader = split.test_data
    if not leaves_out(config, loader):
        loader = unseen_loader(config, loader._dataset, split.test)
    return ranks_of(trainer, loader)


@torch.no_grad()
def ranks_of(trainer: Any, loader: Any) -> tuple[Tensor, Tensor, Tensor]:
    """User, target and the target's rank for each example of a full-ranking loader, [N] each, on the CPU."""
    trainer.model.eval()
    trainer.tot_item_num = loader._dataset.item_num
    if trainer.item_tensor is None:
        trainer.item_tensor = loader._dataset.get_item_feature().to(trainer.device)
    parts = []
    for batch in loader:
        interaction, scores, row, item = trainer._full_sort_batch_eval(batch)
        user = interaction[loader.uid_field].cpu()[row]
        parts.append((user, item, rank_of(scores, row.to(scores.device), item.to(scores.device)).cpu()))
    user, item, rank = (torch.cat(column) for column in zip(*parts, strict=True))
    return user, item, rank


def rank_of(scores: Tensor, row: Tensor, item: Tensor) -> Tensor:
    """Ranks of chosen items, [P]: 1 + the items that score higher, and of equal ones those with a lower id.

    An item without a number for its score (NaN) is behind all others: as the target it has the last rank, n_items, and
    no other item falls behind it. Our choice; a comparison with NaN would give rank 1.

    Args:
        scores: [B, n_items].
        row, item: [P] each; where to look.
    """
    own = scores[row, item][:, None]  # [P, 1]
    ahead = scores[row] > own  # [P, n_items]
    equal = (scores[row] == own) & (torch.arange(scores.shape[1], device=scores.device) < item[:, None])
    rank = 1 + (ahead | equal).sum(dim=1)  # [P]
    return torch.where(own.isnan().squeeze(1), scores.shape[1], rank)
