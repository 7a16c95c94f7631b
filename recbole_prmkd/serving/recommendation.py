"""Lists of recommendations: for users of the data set, or for new histories."""

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_prmkd.errors import UserError
from recbole_prmkd.serving.histories import Histories, histories_of
from recbole_prmkd.serving.list_file import ListFile, as_table, check_output
from recbole_prmkd.serving.loaded_model import LoadedModel, load
from recbole_prmkd.serving.new_items import WithNewItems, digest_of
from recbole_prmkd.serving.scoring import Scorer, ids_by_token
from recbole_prmkd.serving.user_files import known_only, read_histories, read_users
from recbole_prmkd.storage.store import digest

TOPK = 20
_PART_LINES = 1 << 20  # lines of a part of the file


def recommend(
    model: LoadedModel | str | Path,
    users: Sequence[str] | str | Path | None = None,
    histories: Mapping[str, Sequence[str]] | str | Path | None = None,
    topk: int = TOPK,
    unseen: bool = True,
    output: str | Path | None = None,
    progress: bool = False,
    new_items: str | Path | None = None,
) -> pd.DataFrame | Path:
    """The best items of each user, by the model's scores.

    The whole known history is used: training, validation and test, newest items last.

    Args:
        model: what `load` gave, or what it takes.
        users: tokens, or a file of them; None: all users of the data set.
        histories: item tokens of each user by the user's name, newest last, or a file of them; for users that the
            model never saw. Such names need not be in the data set.
        topk: items of a list; of fewer items, all there are.
        unseen: leave out what is in the user's history.
        output: file (.parquet or .csv) that is written in parts; a killed call goes on with it.
        progress: show a bar.
        new_items: a table with item_id and the columns of the items' text: items that came after training, whose
            vectors follow from their texts (`new_items`). Only for a run that started from text.
    Returns:
        A table with the columns user_id, rank, item_id and score; with `output` the file's path.
    Raises:
        UserError: bad input, or histories for a model that cannot score them.
    """
    if output is not None:
        check_output(Path(output))
    if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1:
        raise UserError(f"topk is {topk!r}: write a whole number above 0.")
    if not isinstance(unseen, bool):
        raise UserError(f"unseen is {unseen!r}: write True or False.")
    if users is not None and histories is not None:
        raise UserError("Name users or histories, not both: histories bring their own users.")
    loaded = model if isinstance(model, LoadedModel) else load(model)
    names, numbers, sequences = _asked(loaded, users, histories)
    own = Scorer(loaded, sequences, known=histories is None)
    folder = loaded.kept.file.parent
    scorer = own if new_items is None else WithNewItems(own, numbers, folder, Path(new_items))
    if output is None:
        with _bar(len(numbers), 0, progress) as bar:
            ids, best = _lists(scorer, numbers, topk, unseen, bar, 0, len(numbers))
        return as_table(names, pa.array(scorer.item_tokens, pa.string()), ids, best).to_pandas()
    return _written(Path(output), loaded, scorer, names, numbers, topk, unseen, progress)


def top_items(scores: Tensor, seen: tuple[Tensor, Tensor] | None, topk: int) -> tuple[Tensor, Tensor]:
    """The best items of each user, and their scores: [B, K] both; where there are fewer, the id is 0.

    Args:
        scores: [B, n_items], padding first; changed in place.
        seen: (row, item) pairs to leave out, [P] each.
    """
    if seen is not None:
        scores[seen[0].to(scores.device), seen[1].to(scores.device)] = -torch.inf
    best, ids = torch.topk(scores, min(topk, scores.shape[1]))
    return torch.where(best == -torch.inf, 0, ids), best


def _asked(loaded: LoadedModel, users: Any, histories: Any) -> tuple[list[str], np.ndarray, Histories]:
    """The users' names, their numbers in the histories, and the histories."""
    if histories is not None:
        return _new_users(loaded, histories)
    ids = ids_by_token(loaded.user_tokens)
    if users is None:
        names = list(ids)
    else:
        given = read_users(Path(users)) if isinstance(users, str | Path) else list(dict.fromkeys(map(str, users)))
        names, said = known_only(given, ids, "users")
        if said:
            getLogger().warning(said)
        if not names:
            raise UserError(f"None of the {len(given)} users is in the data set: give histories for new users.")
    return names, np.array([ids[name] for name in names], dtype=np.int64), loaded.histories


def _new_users(loaded: LoadedModel, histories: Any) -> tuple[list[str], np.ndarray, Histories]:
    given = read_histories(Path(histories)) if isinstance(histories, str | Path) else dict(histories)
    ids = ids_by_token(loaded.item_tokens)
    _, said = known_only((str(item) for items in given.values() for item in items), ids, "items")
    if said:
        getLogger().warning(said)
    sequences = {str(name): [ids[token] for token in map(str, items) if token in ids] for name, items in given.items()}
    named = [name for name, items in sequences.items() if items]
    if len(named) < len(sequences):
        getLogger().warning(f"{len(sequences) - len(named)} histories without a known item left out.")
    if not named:
        raise UserError("No history has an item of the data set: write items as its files have them.")
    return named, np.arange(len(named)), histories_of([sequences[name] for name in named])


def _bar(number: int, done: int, shown: bool) -> Any:
    return tqdm(total=number, initial=done, unit="lists", desc="Recommend", disable=not shown)


def _lists(
    scorer: Scorer | WithNewItems, numbers: np.ndarray, topk: int, unseen: bool, bar: Any, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of the lists of the users from `start` to `stop`, [users, K] both; an id of 0 ends a list.

    The arrays are made before the first score: among the large blocks of scores, many small results that stay would
    let the process's memory grow from batch to batch.
    """
    width = min(topk, scorer.n_items)
    ids = np.zeros((stop - start, width), dtype=np.int32)
    best = np.zeros((stop - start, width), dtype=np.float32)
    for place in range(start, stop, scorer.batch):
        batch = numbers[place : min(place + scorer.batch, stop)]
        seen = scorer.histories.pairs(batch) if unseen else None
        found, scores = top_items(scorer.scores(batch), seen, topk)
        lines = slice(place - start, place - start + len(batch))
        ids[lines], best[lines] = found.cpu().numpy(), scores.cpu().numpy()
        bar.update(len(batch))
    return ids, best


def _written(
    output: Path,
    loaded: LoadedModel,
    scorer: Scorer | WithNewItems,
    names: list[str],
    numbers: np.ndarray,
    topk: int,
    unseen: bool,
    progress: bool,
) -> Path:
    per_part = scorer.batch * max(1, _PART_LINES // (scorer.batch * topk))  # users of a part
    weights = loaded.model.state_dict()
    belongs_to = {
        "model": digest([part for name in sorted(weights) for part in (name, weights[name].cpu())]),
        "users": digest([*names, scorer.histories.items, scorer.histories.start]),
        "topk": topk,
        "unseen": unseen,
        "users of a part": per_part,
        **digest_of(scorer),
    }
    file = ListFile(output, belongs_to)
    items = pa.array(scorer.item_tokens, pa.string())
    done = min(file.done * per_part, len(numbers))
    with _bar(len(numbers), done, progress) as bar:
        for start in range(done, len(numbers), per_part):
            stop = min(start + per_part, len(numbers))
            ids, best = _lists(scorer, numbers, topk, unseen, bar, start, stop)
            file.write(as_table(names[start:stop], items, ids, best))
    file.finish()
    return output
