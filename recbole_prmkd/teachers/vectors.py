"""Vectors: any external model as a teacher, by two files. Our choice; it learns nothing here.

    kd_vectors_items   .npz with item_id [N] and feat [N, D]
    kd_vectors_users   .npz with user_id [M] and feat [M, D]: one vector for all examples of a user, or
    kd_vectors_rows    .npz with user_id [K], item_id [K] and feat [K, D]: one vector for each example, which its user
                       and its target name (the first line of a pair counts); examples of validation and test may be
                       there too, for the teacher's metrics

A score is the cosine of the example's and the item's vector. What a file does not name is not covered: the teacher's
weight is zero there; so it is for vectors without a direction (zero, NaN, infinite or overflowing). A user's vector
serves all training examples of the user, the first ones too: make it from training data alone.
"""

from collections.abc import Sequence
from logging import getLogger
from pathlib import Path

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_prmkd.data.vectors_file import check_file, read_file, usable_of
from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.base import Teacher

_IDS = {"items": ["item_id"], "users": ["user_id"], "rows": ["user_id", "item_id"]}


class Vectors(Teacher):
    """An external model's vectors as a RecBole model that only scores."""

    version = "1.0"
    side_information = ("item_vectors", "row_keys", "row_vectors")
    item_text = "nothing"
    learns = False
    reads_examples = True

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self.by_row = bool(config["rows"])
        users, items = dataset.field2id_token[self.USER_ID], dataset.field2id_token[self.ITEM_ID]
        table = _table(Path(config["items"]), _IDS["items"], [items])
        self.item_vectors = nn.Parameter(table, requires_grad=False)
        part = "rows" if self.by_row else "users"
        tokens, features = read_file(Path(config[part]), _IDS[part])
        if features.shape[1] != self.item_vectors.shape[1]:
            raise UserError(
                f"{config[part]} has vectors {features.shape[1]} wide, {config['items']} {self.item_vectors.shape[1]}: "
                "both must come from one model."
            )
        keys, lines = _first_lines(Path(config[part]), part, tokens, [users, items] if self.by_row else [users])
        self.row_keys = nn.Parameter(keys, requires_grad=False)
        self.row_vectors = nn.Parameter(usable_of(Path(config[part]), features[lines.numpy()]), requires_grad=False)

    def encode_items(self) -> Tensor:
        """The items' vectors, [n_items, D]."""
        return self.item_vectors

    def covered_items(self) -> Tensor:
        """Items that the file names, [n_items]."""
        return (self.item_vectors != 0).any(dim=1).cpu()

    def encode_batch(self, interaction: Interaction, items: Tensor) -> Tensor:
        """The examples' vectors, [B, D]; zero where the file names no such example."""
        keys = interaction[self.USER_ID]
        if self.by_row:
            keys = keys * self.n_items + interaction[self.ITEM_ID]
        line = torch.searchsorted(self.row_keys, keys).clamp(max=len(self.row_keys) - 1)
        return self.row_vectors[line] * (self.row_keys[line] == keys)[:, None]


def check_vectors(name: str, config: Config) -> None:
    """The cheap checks of the teacher of this name, before the first expensive step.

    Raises:
        UserError: a file is not named, cannot be read or lacks an array.
    """
    key = f"kd_{name}_".lower()
    files = {part: config[key + part] for part in _IDS if key + part in config}
    if not files.get("items") or bool(files.get("users")) == bool(files.get("rows")):
        raise UserError(
            f"Teacher {name} needs two files: --{key}items=FILE.npz, and either --{key}users=FILE.npz or "
            f"--{key}rows=FILE.npz."
        )
    for part, file in files.items():
        if file:
            check_file(Path(file), _IDS[part])


def _table(file: Path, ids: Sequence[str], tokens_of: Sequence[Sequence[str]]) -> Tensor:
    """Vectors by internal id, [n, D]; zero for ids that the file does not name."""
    tokens, features = read_file(file, ids)
    keys, lines = _first_lines(file, "items", tokens, tokens_of)
    table = torch.zeros(len(tokens_of[0]), features.shape[1])
    table[keys] = usable_of(file, features[lines.numpy()])
    return table


def _first_lines(
    file: Path, what: str, tokens: Sequence[Sequence[str]], tokens_of: Sequence[Sequence[str]]
) -> tuple[Tensor, Tensor]:
    """The numbers of a file's ids that the data set has, ascending, each once, and the line of each: [K] both."""
    numbers, found = _numbers(tokens, tokens_of)
    _report(file, int(found.sum()), what)
    lines = torch.nonzero(found).squeeze(1)
    keys, order = torch.sort(numbers[lines], stable=True)
    first = torch.ones(len(keys), dtype=torch.bool)
    first[1:] = keys[1:] != keys[:-1]
    if not first.all():  # also where a user has the same target twice
        getLogger().warning(
            f"{file}: {int((~first).sum())} lines repeat one of the {what}; the first line of each counts."
        )
    return keys[first], lines[order[first]]


def _numbers(tokens: Sequence[Sequence[str]], tokens_of: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """One number for each line of a file, from the internal ids of its tokens, and which lines have one: [N] both."""
    numbers = torch.zeros(len(tokens[0]), dtype=torch.int64)
    found = torch.ones(len(tokens[0]), dtype=torch.bool)
    for column, own in zip(tokens, tokens_of, strict=True):
        id_of = {str(token): i for i, token in enumerate(own) if i}
        ids = torch.tensor([id_of.get(token, 0) for token in column])
        numbers, found = numbers * len(own) + ids, found & (ids > 0)
    return numbers, found


def _report(file: Path, found: int, what: str) -> None:
    if not found:
        raise UserError(f"{file} names none of the data set's {what}: use the tokens of its files.")
    getLogger().info(f"Vectors: {found} {what} of {file} are in the data set.")
