"""A student that goes on from an earlier run's weights on a newer data set (`kd_student_checkpoint`).

Rows of users, items and other tokens that both data sets have are taken over by their tokens. New ones stay as the new
student has made them (`kd_item_init` may have started them from text). The optimiser starts anew.

    weight = kd_student_shrink x earlier weight + (1 - kd_student_shrink) x the new student's own start

Weights that had been trained to their end gain little more on new data; nearer to a random start they learn on
(shrink and perturb, Ash and Adams, NeurIPS 2020; the perturbation is here the new student's start).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor, nn

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.own_checkpoint import read_weights
from recbole_prmkd.results.run_folder import DATA, read_result
from recbole_prmkd.results.schema import CarriedOver
from recbole_prmkd.serving.kept_data import Kept, read

_MORE_ROWS = range(3)  # a table may have rows beyond the tokens, such as that of a mask (BERT4Rec, S3Rec)


@dataclass(frozen=True)
class _Table:
    """What an axis of a weight may count: sizes in both data sets, and the rows that both have.

    old, new: [K] places of the same tokens.
    """

    word: str
    old_size: int
    new_size: int
    old: Tensor
    new: Tensor


def check_start(config: Config) -> None:
    """Refuse a folder to go on from that does not fit, before the data are read.

    Raises:
        UserError: with one sentence.
    """
    path = config["kd_student_checkpoint"]
    if not path:
        return
    folder = Path(path)
    result = read_result(folder)
    name = result.student.checkpoint
    if not (folder / DATA).is_file() or name is None or not (folder / name).is_file():
        raise UserError(
            f"kd_student_checkpoint = {path} lacks {DATA} or its checkpoint: name the folder of a plain run, not of a "
            "comparison's cell, that this version has written."
        )
    if result.student.model != config["model"]:
        raise UserError(
            f"kd_student_checkpoint = {path} holds a {result.student.model}, and the model is {config['model']}: name "
            "a run of the same model."
        )


def carry_over(student: AbstractRecommender, config: Config, dataset: Dataset) -> CarriedOver:
    """Take over the weights of the run that `kd_student_checkpoint` names, in place; returns what they were.

    Args:
        dataset: the new one.
    Raises:
        UserError: the weights have other sizes for other reasons than their users and items.
    """
    folder = Path(config["kd_student_checkpoint"])
    kept: Kept = read(folder / DATA)
    before = kept.dataset(kept.config())
    weights, _ = read_weights(folder / str(read_result(folder).student.checkpoint))
    taken = take_over(student, weights, before, dataset, folder, config["kd_student_shrink"])
    found = CarriedOver(
        folder=str(folder),
        weights=taken,
        **counts(before, dataset),
    )
    getLogger().info(
        f"The student goes on from {folder}: {taken} weights, {found.users} users and {found.items} items are taken "
        f"over; {found.new_users} users and {found.new_items} items are new."
    )
    return found


def take_over(
    model: nn.Module, weights: Mapping[str, Tensor], before: Any, dataset: Any, folder: Path, shrink: float = 1.0
) -> int:
    """Put an earlier model's weights into this one, rows by token; returns how many.

    Args:
        before, dataset: the data sets of both models, with the tokens of each field.
        folder: where the weights come from, for the message.
        shrink: share of the earlier weights beside the model's own; buffers are taken whole.
    Raises:
        UserError: they have other sizes for other reasons than their tokens.
    """
    tables = _tables(model, before, dataset)
    parameters = dict(model.named_parameters())
    taken = 0
    for name, new in model.state_dict().items():
        old = weights.get(name)
        axes = None if old is None or old.dim() != new.dim() else _axes(name, old, new, tables)
        if old is None or axes is None:
            was = "none" if old is None else str(list(old.shape))
            raise UserError(
                f"The weight {name} is {list(new.shape)} now and was {was} in {folder}: set the sizes of the model as "
                "in that run."
            )
        mapped = any(len(new_rows) != new.shape[axis] for axis, (_, new_rows) in enumerate(axes))
        if name not in parameters and mapped:
            continue  # made from the data set anew
        _copy(old, new, axes, shrink if name in parameters else 1.0)
        taken += 1
    return taken


def counts(before: Any, dataset: Any) -> dict[str, int]:
    """How many users and items both data sets have, and how many are new, as `CarriedOver` names them."""
    found: dict[str, int] = {}
    for what, field in (("users", dataset.uid_field), ("items", dataset.iid_field)):
        old, new = ({*map(str, each.field2id_token[field][1:])} for each in (before, dataset))
        found |= {what: len(old & new), f"new_{what}": len(new - old)}
    return found


def _tables(student: nn.Module, before: Any, dataset: Any) -> list[_Table]:
    """What axes may count, the likeliest first."""
    fields = [dataset.iid_field, dataset.uid_field]
    if hasattr(dataset, "entity_field"):
        fields.append(dataset.entity_field)
    tables = [
        _of_fields(word, [field], before, dataset)
        for word, field in zip(("item", "user", "entity"), fields, strict=False)
    ]
    tables.append(_of_fields("", [dataset.uid_field, dataset.iid_field], before, dataset))
    joined = [name for name in getattr(student, "token_field_names", []) if name in before.field2id_token]
    if joined:  # one table for all token fields, as in the models of feature interactions
        tables.append(_of_fields("token", joined, before, dataset))
    for field in getattr(dataset, "field2id_token", {}):
        if field in before.field2id_token and field not in fields:
            tables.append(_of_fields(f".{field}", [field], before, dataset))
    return tables


def _of_fields(word: str, fields: list[str], before: Any, dataset: Any) -> _Table:
    """The rows that both data sets have, in a table of these fields one after the other."""
    old_rows, new_rows, old_size, new_size = [], [], 0, 0
    for field in fields:
        place = {str(token): number for number, token in enumerate(before.field2id_token[field])}
        tokens = [str(token) for token in dataset.field2id_token[field]]
        new = torch.tensor([number for number, token in enumerate(tokens) if token in place], dtype=torch.int64)
        old = torch.tensor([place[token] for token in tokens if token in place], dtype=torch.int64)
        old_rows.append(old + old_size)
        new_rows.append(new + new_size)
        old_size, new_size = old_size + before.num(field), new_size + dataset.num(field)
    return _Table(word, old_size, new_size, torch.cat(old_rows), torch.cat(new_rows))


def _axes(name: str, old: Tensor, new: Tensor, tables: list[_Table]) -> list[tuple[Tensor, Tensor]] | None:
    """For each axis the places to take from the old weight and to put into the new one; None: the sizes do not fit."""
    axes = []
    for before, after in zip(old.shape, new.shape, strict=True):
        fitting = [
            (table, more)
            for table in tables
            for more in _MORE_ROWS
            if (before, after) == (table.old_size + more, table.new_size + more)
            and (not table.word.startswith(".") or table.word in f".{name}")
        ]
        fitting.sort(
            key=lambda fit: (not fit[0].word or fit[0].word not in name, fit[1])
        )  # by its name, where in doubt
        if fitting:
            table, more = fitting[0]
            rest = torch.arange(more)
            axes.append((torch.cat([table.old, table.old_size + rest]), torch.cat([table.new, table.new_size + rest])))
        elif before == after:
            axes.append((torch.arange(before), torch.arange(before)))
        else:
            return None
    return axes


@torch.no_grad()
def _copy(old: Tensor, new: Tensor, axes: list[tuple[Tensor, Tensor]], shrink: float) -> None:
    taken = old
    for axis, (rows, _) in enumerate(axes):
        taken = taken.index_select(axis, rows)
    if not axes:
        new.copy_(old if shrink == 1 else torch.lerp(new, old.to(new), shrink))
        return
    places: Mapping[int, Any] = {axis: rows for axis, (_, rows) in enumerate(axes)}
    shape = [1] * len(axes)
    index = tuple(rows.view(*shape[:axis], -1, *shape[axis + 1 :]).to(new.device) for axis, rows in places.items())
    taken = taken.to(new)
    new[index] = taken if shrink == 1 else torch.lerp(new[index], taken, shrink)
