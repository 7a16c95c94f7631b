"""Item warm start: a student's own item table starts from the items' text or from a teacher's vectors. Our choice.

The principal components of the item vectors, cut to the table's width, take the place of its random numbers; serving
cost and checkpoint are the stock model's. The paper has nothing like it, and it needs no distillation, so it is a
baseline that distillation must be compared with.
"""

from logging import getLogger

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor, nn

from recbole_prmkd.errors import UserError

_ITEMS = {"IU_emb", "LI_emb", "IL_emb"}  # tables of items under other names: FPMC's
_SPECIAL = 2  # rows beyond the items' that a table may have, such as BERT4Rec's mask token


class NoWarmStart(UserError):
    """The student has no item embedding, or no item has a vector."""


def principal_axes(table: Tensor, width: int) -> Tensor:
    """The first principal axes of a centred table [n, D]: [D, W], W = `width` or the table's rank if that is less."""
    variance, axes = torch.linalg.eigh(table.T @ table)  # ascending
    return axes[:, variance > 1e-10 * variance[-1]].flip(1)[:, :width]


def principal_components(vectors: Tensor, covered: Tensor, width: int, std: float) -> Tensor:
    """The first components of the covered items' vectors, scaled together to one standard deviation.

    Args:
        vectors: [n, D].
        covered: [n] bool; at least two.
        width: components wanted.
        std: standard deviation of all numbers of the result.
    Returns:
        [covered items, W] in the vectors' precision, W = `width` or the rank of the vectors where that is less. The
        sign of each component is fixed, so that equal vectors give equal components.
    """
    table = vectors[covered].double()
    table = table - table.mean(dim=0)
    axes = principal_axes(table, width)  # [D, W]
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    components = table @ (axes * largest.sign())
    return (components * (std / components.std().clamp(min=1e-12))).to(vectors)


def item_tables(model: AbstractRecommender, config: Config, dataset: Dataset) -> list[tuple[str, nn.Embedding, int]]:
    """The student's item embeddings: name, table, and the row of item id 0.

    A table of items alone is recognised by its size and its name. Knowledge models may have the items as the first rows
    of their entities' table, and models with features one table for all fields, with an offset for each.
    """
    n_items = dataset.item_num
    sizes = {n_items + special for special in range(_SPECIAL + 1)} | {getattr(dataset, "entity_num", n_items)}
    items, entities = [], []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or module.embedding_dim < 2 or not module.weight.requires_grad:
            continue
        last = name.rpartition(".")[2]
        if module.num_embeddings in sizes and ("item" in last or last in _ITEMS):
            items.append((name, module, 0))
        elif module.num_embeddings in sizes and "entity" in last:
            entities.append((name, module, 0))
        elif (first := _offset(model, name, config["ITEM_ID_FIELD"])) is not None:
            items.append((name, module, first))
    return items or entities


def _offset(model: AbstractRecommender, name: str, item: str) -> int | None:
    """The row of item id 0 in a table of all fields, or of all the items' fields (DIN); None for any other table."""
    owner, table, part = name.partition("token_embedding_table.")
    if not table or part not in ("embedding", "item.embedding"):
        return None
    layer = model.get_submodule(owner.rstrip("."))
    fields, offsets = layer.token_field_names, layer.token_field_offsets
    if part == "item.embedding":
        fields, offsets = fields["item"], offsets["item"]
    return int(offsets[fields.index(item)]) if item in fields else None


@torch.no_grad()
def warm_start(model: AbstractRecommender, config: Config, dataset: Dataset, vectors: Tensor, source: str) -> None:
    """Put the principal components of the item vectors into every item table of the student.

    Items without a vector keep their random numbers, and so do columns beyond the vectors' rank.

    Args:
        vectors: [n_items, D] by the student's item ids; zero = none.
        source: what they are of, for the log: `text`, or a teacher's name.
    Raises:
        NoWarmStart: the student has no item embedding, or no item has a vector; with `auto` this is a warning.
    """
    covered = (vectors != 0).any(dim=1)
    covered[0] = False
    tables = item_tables(model, config, dataset)
    reason = None
    if int(covered.sum()) < 2:
        reason = f"kd_item_init={source} covers no items: use another one, or none"
    elif not tables:
        reason = f"{config['model']} has no embedding of items to start from vectors: set kd_item_init=none for it"
    if reason and config["kd_item_init"] == "auto":
        getLogger().warning(f"No warm start: {reason}.")
        return
    if reason:
        raise NoWarmStart(f"{reason}.")
    for name, table, first in tables:
        components = principal_components(vectors, covered, table.embedding_dim, config["kd_item_init_std"])
        rows = first + torch.nonzero(covered).squeeze(1).to(table.weight.device)
        table.weight[rows, : components.shape[1]] = components.to(table.weight)
        getLogger().info(
            f"Warm start: {name} has the first {components.shape[1]} components of "
            f"{source} for {len(rows)} of {dataset.item_num - 1} items."
        )
