"""Teachers that go on from their weights in an earlier run (`kd_teacher_refresh` with `kd_student_checkpoint`).

The earlier run's result.json names each teacher's stored folder. Rows of items and users are taken over by their
tokens, all other weights whole; tables from text or images are today's. A teacher without such weights is fitted as in
any run: one in closed form, one whose folder is gone, or a model of RecBole that reads more than users and items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.utils import ModelType
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import kind_of, teacher_settings
from recbole_prmkd.results.run_folder import DATA, read_result
from recbole_prmkd.results.schema import CarriedOver, RunResult
from recbole_prmkd.serving.carry_over import counts, take_over
from recbole_prmkd.serving.kept_data import read
from recbole_prmkd.storage import store
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.recbole_model import KEPT, RecBoleTeacher

KEEP = "keep"
# Settings without which the same weights are another model.
_MEANING = ("n_heads", "hidden_act", "layer_norm_eps", "train_stage", "attention_window", "pooler_type")


@dataclass(frozen=True)
class Earlier:
    """What a teacher has started from.

    file: its earlier weights. identity: all of it, for the identity of what is made from it. new_items: [N] ids.
    """

    file: Path
    keep: bool
    identity: Mapping[str, Any]
    new_items: Tensor
    carried_over: CarriedOver


@dataclass(frozen=True)
class _Tokens:
    """Tokens by internal id, PAD first; what `take_over` asks of a data set."""

    uid_field: str
    iid_field: str
    field2id_token: dict[str, np.ndarray]

    def num(self, field: str) -> int:
        return len(self.field2id_token[field])


def start_from_earlier(model: Teacher, name: str, run: Config, data: TeacherData) -> Earlier | None:
    """Put the teacher's weights of the earlier run into it; None, after a log line, where it is to be fitted anew.

    Raises:
        UserError: the weights are of other sizes, or of another text or image encoder.
    """
    mode = run["kd_teacher_refresh"]
    if mode == "full" or not run["kd_student_checkpoint"]:
        return None
    folder = Path(run["kd_student_checkpoint"])
    result = read_result(folder)
    file = folder / DATA
    users, items = _tokens_of(file, file.stat().st_mtime_ns if file.is_file() else 0)
    now = _tokens(run, data.user_tokens, data.item_tokens)
    before = _tokens(run, users, items)
    carried = counts(before, now)
    stored = _stored(name, run, result)
    weights = stored.weights("weights") if stored else {}
    reason = _why_not(model, name, folder, stored, weights, carried["items"])
    if reason is not None or stored is None:
        getLogger().info(f"{name} is fitted anew, in spite of kd_teacher_refresh={mode}: {reason}.")
        return None
    _check_encoders(model, name, run, result)
    _check_meaning(name, run, stored)
    taken = _take_over(model, weights, before, now, stored.path)
    new_items, new_users = _new(data.item_tokens, items), _new(data.user_tokens, users)
    model.go_on(new_items, new_users, mode == KEEP)
    pretrained = bool(stored.identity.get("refresh", stored.identity).get("checkpoint"))
    if pretrained:  # as in the earlier run
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.startswith(model.frozen_when_pretrained):
                parameter.requires_grad_(False)
    found = CarriedOver(folder=str(stored.path), weights=taken, **carried)
    getLogger().info(
        f"{name} {'keeps' if mode == KEEP else 'goes on from'} its weights in {stored.path}: {taken} weights and "
        f"{found.items} items are taken over; {found.new_items} items are new."
    )
    identity = {"mode": mode, "checkpoint": pretrained, "from": store.digest([stored.identity])}
    return Earlier(stored.path / "weights.safetensors", mode == KEEP, identity, new_items, found)


def _stored(name: str, run: Config, result: RunResult) -> store.StoredFolder | None:
    """The teacher's stored folder of the earlier run, here or where that run had it."""
    teacher = result.teachers.get(name)
    if teacher is None or teacher.stored is None or ".." in Path(teacher.stored).parts:
        return None
    roots = dict.fromkeys([run["kd_teacher_dir"], str(result.config.get("kd_teacher_dir"))])
    found = (store.read(Path(root) / teacher.stored) for root in roots)
    return next((each for each in found if each is not None), None)


def _why_not(
    model: Teacher,
    name: str,
    folder: Path,
    stored: store.StoredFolder | None,
    weights: Mapping[str, Tensor],
    known_items: int,
) -> str | None:
    """Why a teacher cannot go on from earlier weights; None: it can."""
    host = model if isinstance(model, RecBoleTeacher) else None
    if not model.learns and (host is None or host.host_config["MODEL_TYPE"] == ModelType.TRADITIONAL):
        return "it is not trained by gradients"
    if stored is None:
        return f"the run in {folder} had no such teacher, or its stored weights are gone"
    was = stored.identity
    if was.get("teacher") != kind_of(name) or not str(was.get("code")).startswith(f"{model.code_version} "):
        return f"{stored.path} was written by another version"
    if host and (not host.reads_ids_alone or was.get("side_files")):
        return "it reads more than users and items"
    if host and was.get("checkpoint") and "refresh" not in was:
        return "it was a checkpoint of RecBole's in the earlier run"
    if host and any(each.startswith(KEPT) for each in weights):
        return "it keeps more than weights"
    return None if known_items else "it knows none of today's items"


def _check_encoders(model: Teacher, name: str, run: Config, result: RunResult) -> None:
    keys = ["kd_text_encoder"] if model.item_text != "nothing" else []
    if kind_of(name) == "UniM2Rec":
        keys.append("kd_image_encoder")
    for key in keys:
        if result.config.get(key) != run[key]:
            raise UserError(
                f"{key} is {run[key]!r} and was {result.config.get(key)!r} in {run['kd_student_checkpoint']}, so "
                f"{name} cannot go on: use that one, or --kd_teacher_refresh=full."
            )


def _check_meaning(name: str, run: Config, stored: store.StoredFolder) -> None:
    was = stored.identity.get("settings", {})
    now = teacher_settings(name, run.final_config_dict)
    for key in _MEANING:
        if key in was and was[key] != now.get(key):
            raise UserError(
                f"kd_{name.lower()}_{key} is {now.get(key)!r} and was {was[key]!r} in the earlier run: set it as "
                "there, or use --kd_teacher_refresh=full."
            )


def _take_over(model: Teacher, weights: Mapping[str, Tensor], before: _Tokens, now: _Tokens, path: Path) -> int:
    try:
        if isinstance(model, RecBoleTeacher):
            start = "host."
            host = {key.removeprefix(start): each for key, each in weights.items() if key.startswith(start)}
            return take_over(model.host, host, before, now, path)
        return _take_over_items(model, weights, before, now, path)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}, or use --kd_teacher_refresh=full.") from error


@torch.no_grad()
def _take_over_items(model: Teacher, weights: Mapping[str, Tensor], before: _Tokens, now: _Tokens, path: Path) -> int:
    """All but the tables of the data set's content; of a table of items the rows that both have."""
    place = {token: number for number, token in enumerate(before.field2id_token[before.iid_field])}
    known = [(number, place[token]) for number, token in enumerate(now.field2id_token[now.iid_field]) if token in place]
    new_rows, old_rows = torch.tensor(known).unbind(1)
    taken = 0
    for name, tensor in model.state_dict().items():
        table = name.split(".")[0]
        if table in model.side_information:
            continue
        old = weights.get(name)
        by_item = table == "item_embedding"
        if old is None or old.shape[by_item:] != tensor.shape[by_item:]:
            was = "none" if old is None else str(list(old.shape))
            raise UserError(
                f"The weight {name} is {list(tensor.shape)} now and was {was} in {path}: set the sizes of the teacher "
                "as in that run."
            )
        if by_item:
            tensor[new_rows.to(tensor.device)] = old[old_rows].to(tensor)
        else:
            tensor.copy_(old)
        taken += 1
    return taken


def _tokens(run: Config, users: list[str], items: list[str]) -> _Tokens:
    """In the numbering of teachers: tokens in ascending order."""
    fields = {run["USER_ID_FIELD"]: users, run["ITEM_ID_FIELD"]: items}
    user, item = fields
    return _Tokens(user, item, {field: np.array(["[PAD]", *sorted(tokens)]) for field, tokens in fields.items()})


@lru_cache(maxsize=1)
def _tokens_of(file: Path, _changed: int) -> tuple[list[str], list[str]]:
    """Tokens of the earlier run's users and items."""
    kept = read(file)
    dataset = kept.dataset(kept.config())
    users, items = (dataset.field2id_token[field][1:] for field in (dataset.uid_field, dataset.iid_field))
    return [*map(str, users)], [*map(str, items)]


def _new(tokens: list[str], before: list[str]) -> Tensor:
    """The ids, from 1, of the tokens that were not there before."""
    known = set(before)
    return torch.tensor([number for number, token in enumerate(tokens, 1) if token not in known], dtype=torch.int64)
