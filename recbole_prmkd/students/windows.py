"""Shared prefixes: one pass over a window of a user's items gives the vectors of all its prefixes.

RecBole trains a sequential model on one row per prefix, each padded to the maximum length. A causal model's state
at position p depends on the items up to p alone, so one window serves all rows whose target lies in it. The model
is not edited: `gather_indexes`, which every such model calls to pick the last state, is replaced on the instance
and returns all wanted positions; `calculate_loss` then works unmodified. `forward` is replaced too, by calls of itself
on windows of similar length, each group cut to its longest.

What differs from RecBole: rows of a window share a batch, and a target deep in a long history sees at least `context`
items before it, not always the maximum.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor, nn

from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.recbole_host.processes import share_of
from recbole_prmkd.students.bucketing import least_padding

WINDOW, OFFSET = "kd_window", "kd_offset"  # a row's window in the batch, and its last item's place there
WEIGHT = "kd_batch_weight"  # of the batch's mean loss among those of other processes


@dataclass(frozen=True)
class Windows:
    """W windows over the flat items, and each row's place in them.

    start, length: [W]; window, offset: [N], the row's window and the place of its newest history item in it.
    """

    start: Tensor
    length: Tensor
    window: Tensor
    offset: Tensor


def windows(rows: Examples, max_length: int, context: float) -> Windows:
    """Tile each user's items so that every row with a history lies in exactly one window.

    Args:
        rows: rows with at least one item of history; rows of one user that share a history block share windows.
        longest: maximum items of a window.
        context: share of `max_length` that a row keeps as history at least (all of it where the history is shorter).
    """
    keep = min(int(max_length * context), max_length - 1)
    step = max_length - keep
    length = rows.lengths
    turn = (length - max_length + step - 1).div(step, rounding_mode="floor").clamp(min=0)  # [N] windows further on
    first = rows.start + turn * step  # [N] where the row's window starts
    start, window = torch.unique(first, return_inverse=True)
    offset = rows.stop - first - 1
    size = torch.zeros_like(start).scatter_reduce(0, window, offset + 1, "amax")
    return Windows(start, size, window, offset)


class WindowLoader:
    """Batches of windows for RecBole's training loop; stands in for its TrainDataLoader.

    Each batch holds item_id_list [W, L], item_length [W] and user_id [W] per window, and item_id [R], kd_example [R],
    kd_window [R], kd_offset [R] per row; R is about `train_batch_size`. The batches are a pure function of (seed,
    epoch, scheduled rows).
    """

    def __init__(self, config: Config, dataset: Dataset | None, rows: Examples) -> None:
        self.config, self.dataset, self._dataset, self.rows = config, dataset, dataset, rows
        self.shuffle, self.epoch = False, 0  # False: RecBole would set the epoch of a sampler
        self._usable = torch.nonzero(rows.lengths > 0).squeeze(1)  # [N']
        self._tiles = windows(rows.select(self._usable), config["MAX_ITEM_LIST_LENGTH"], config["kd_window_context"])
        self._scheduled: Tensor | None = None

    def schedule(self, index: Tensor | None) -> None:
        """Use these rows only (a curriculum's); None: all."""
        self._scheduled = index

    def __len__(self) -> int:
        return len(self.batches())

    def __iter__(self) -> Iterator[Interaction]:
        batches = self.batches()
        self.epoch += 1
        return map(self._own_part, batches)

    def _own_part(self, positions: Tensor) -> Interaction:
        """This process's part of a batch; where there are several, with its weight."""
        part, weight = share_of(positions, self.config)
        batch = self.batch(part)
        if not self.config["single_spec"]:
            batch.interaction[WEIGHT] = torch.full((len(part),), weight)
        return batch

    def _rows_in_use(self) -> Tensor:
        if self._scheduled is None:
            return torch.arange(len(self._usable))
        chosen = torch.zeros(len(self.rows), dtype=torch.bool)
        chosen[self._scheduled] = True
        return torch.nonzero(chosen[self._usable]).squeeze(1)

    def batches(self) -> list[Tensor]:
        """Row positions (in the usable rows) of each batch: whole windows, in random order unless `shuffle` is off."""
        # Batches of similar lengths would pad less, but taught SASRec worse (docs/results.md): `forward` saves that.
        generator = torch.Generator().manual_seed(self.config["seed"] + 7919 * self.epoch)
        positions = self._rows_in_use()
        number = len(self._tiles.start)
        turn = torch.randperm(number, generator=generator) if self.config["shuffle"] else torch.arange(number)  # [W]
        positions = positions[
            torch.argsort(turn[self._tiles.window[positions]], stable=True)
        ]  # [N'] in the windows' turn
        window = self._tiles.window[positions]
        first = torch.searchsorted(turn[window], turn[window])  # [N'] rows in the windows before its own
        sizes = torch.unique_consecutive(first // self.config["train_batch_size"], return_counts=True)[1]
        return list(positions.split(sizes.tolist()))

    def batch(self, positions: Tensor) -> Interaction:
        """The windows of these rows; `positions` number the rows with a history, [R]."""
        tiles, rows = self._tiles, self.rows
        used, window = torch.unique(tiles.window[positions], return_inverse=True)
        length = tiles.length[used]  # [W]
        columns = torch.arange(int(length.max()))
        items = rows.items[(tiles.start[used][:, None] + columns).clamp(max=len(rows.items) - 1)]  # [W, L]
        index = self._usable[positions]  # [R]
        user = torch.empty_like(used)
        user[window] = rows.users[index]
        item = self.config["ITEM_ID_FIELD"]
        return Interaction(
            {
                item + self.config["LIST_SUFFIX"]: torch.where(columns < length[:, None], items, 0),
                self.config["ITEM_LIST_LENGTH_FIELD"]: length,
                self.config["USER_ID_FIELD"]: user,
                item: rows.targets[index],
                EXAMPLE: index,
                WINDOW: window,
                OFFSET: tiles.offset[positions],
            }
        )


def example_positions(interaction: Interaction, length: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's newest history item stands in the batch: sequence [R] and place in it [R].

    length: [B] true lengths; in a batch without windows each sequence is one row.
    """
    if WINDOW in interaction:
        return interaction[WINDOW], interaction[OFFSET]
    return torch.arange(len(length), device=length.device), length - 1


def weighted(loss: Tensor, interaction: Interaction) -> Tensor:
    """The mean loss of a batch times its weight among those of other processes."""
    return loss * interaction[WEIGHT][0] if WEIGHT in interaction else loss


_PROBED = 64  # rows that a model is asked on whether it can share
Groups = Callable[[Tensor], list[Tensor]]  # lengths [W] -> numbers of windows that are read together
_ENTRIES = ("calculate_loss", "full_sort_predict", "encode_batch")  # what is called with a batch


class _OnWindows:
    """What stands in for a model's methods inside `shared_prefixes`."""

    def __init__(self, model: AbstractRecommender, grouped: Groups) -> None:
        self._gather, self._forward, self._grouped = model.gather_indexes, model.forward, grouped
        self._wanted: list[tuple[Tensor, Tensor]] = []  # the rows to give: window [R] and place in it [R]

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        if not self._wanted:
            return self._gather(output, gather_index)
        window, offset = self._wanted[-1]
        return output[window, offset]  # [R, D]

    def forward(self, item_seq: Tensor, *others: Tensor) -> Any:
        """The model's own, of windows [W, L] and numbers of each [W], in groups of similar length; [R, D]."""
        if not self._wanted:
            return self._forward(item_seq, *others)
        length = (item_seq != 0).sum(1)  # [W]
        groups = self._grouped(length)
        if len(groups) == 1:
            return self._forward(item_seq, *others)
        (window, offset), vectors, order = self._wanted[-1], [], []
        for group in groups:
            place = torch.full_like(length, -1)
            place[group] = torch.arange(len(group), device=length.device)
            rows = torch.nonzero(place[window] >= 0).squeeze(1)
            max_length = int(length[group].max())
            with self._giving(place[window[rows]], offset[rows]):
                given = self._forward(item_seq[group, :max_length], *(other[group] for other in others))
            if len(given) != len(rows):  # said here: a place out of range below would end a CUDA process
                raise ValueError(f"forward gave {len(given)} vectors for {len(rows)} rows")
            vectors.append(given)
            order.append(rows)
        return torch.cat(vectors)[torch.cat(order).argsort()]

    def entry(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The model's `name`, which is called with a batch; one without a window column passes through unchanged."""

        def call(interaction: Interaction, *args: Any, **kwargs: Any) -> Any:
            if WINDOW not in interaction:
                return function(interaction, *args, **kwargs)
            with self._giving(interaction[WINDOW], interaction[OFFSET]):
                result = function(interaction, *args, **kwargs)
            return weighted(result, interaction) if name == "calculate_loss" else result

        return call

    @contextmanager
    def _giving(self, window: Tensor, offset: Tensor) -> Iterator[None]:
        self._wanted.append((window, offset))
        try:
            yield
        finally:
            self._wanted.pop()


@contextmanager
def shared_prefixes(model: AbstractRecommender, grouped: Groups = least_padding) -> Iterator[None]:
    """Inside, the model's loss, scores and vectors of a batch of windows cover all rows of the batch.

    grouped: which windows `forward` reads together, by their lengths.
    """
    stand_in = _OnWindows(model, grouped)
    entries = {name: stand_in.entry(name, getattr(model, name)) for name in _ENTRIES if hasattr(model, name)}
    methods = {"gather_indexes": stand_in.gather_indexes, "forward": stand_in.forward, **entries}
    before = {name: vars(model).get(name) for name in methods}  # None: the class's own
    for name, method in methods.items():
        setattr(model, name, method)
    try:
        yield
    finally:
        for name, function in before.items():
            del model.__dict__[name]
            if function is not None:
                setattr(model, name, function)


def _each_length(length: Tensor) -> list[Tensor]:
    """Windows of each length for themselves."""
    return [torch.nonzero(length == size).squeeze(1) for size in length.unique()]


def alike(ours: Tensor, wanted: Tensor) -> bool:
    """Whether scores are the same up to rounding, against their spread: an untrained model's may be very small."""
    tolerance = max(1e-4, 4 * torch.finfo(wanted.dtype).eps)  # half precision under AMP
    ours, wanted = ours.float(), wanted.float()
    spread = float(wanted.std())
    return spread > 0 and torch.allclose(ours, wanted, rtol=tolerance, atol=tolerance * spread)


def why_not_shared(model: AbstractRecommender, config: Config, rows: Examples) -> str | None:
    """None where shared prefixes give the model's own loss and scores on a few real rows; else the reason.

    The live model is run in evaluation mode on some users' prefixes, two of each at least, as RecBole would feed them
    and as windows: a model that looks at future items, or does not use `gather_indexes`, gives other numbers.
    """
    if not hasattr(model, "gather_indexes"):
        return "it is no sequential model of RecBole"
    if config["loss_type"] != "CE":
        return "its loss_type is not CE"
    max_length = config["MAX_ITEM_LIST_LENGTH"]
    usable = (rows.lengths > 0) & (rows.lengths <= max_length)  # [N]
    usable &= torch.bincount(rows.users[usable], minlength=int(rows.users.max()) + 1)[rows.users] > 1
    if not bool(usable.any()):
        return "no user has two rows with histories, so there is nothing to share"
    by_user = torch.argsort(rows.users, stable=True)
    sample = rows.select(by_user[usable[by_user]][:_PROBED].sort().values)
    item_seq, item_seq_len = sample.histories(torch.arange(len(sample)), max_length)
    prefixes = Interaction(
        {
            config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]: nn.functional.pad(
                item_seq, (0, max_length - item_seq.shape[1])
            ),
            config["ITEM_LIST_LENGTH_FIELD"]: item_seq_len,
            config["USER_ID_FIELD"]: sample.users,
            config["ITEM_ID_FIELD"]: sample.targets,
        }
    ).to(config["device"])
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            loss, scores = model.calculate_loss(prefixes), model.full_sort_predict(prefixes)
            batch = WindowLoader(config, None, sample).batch(torch.arange(len(sample))).to(config["device"])
            with shared_prefixes(model, _each_length):
                shared_loss, shared_scores = model.calculate_loss(batch), model.full_sort_predict(batch)
            scores, shared_scores = scores.view(len(sample), -1), shared_scores.view(len(sample), -1)
        # The loss alone would not tell: of tiny scores it is the same in any case.
        same = torch.allclose(loss, shared_loss, rtol=1e-4, atol=1e-5) and alike(shared_scores, scores)
        return None if same else "its state at a position depends on future items"
    except Exception as error:  # whatever a foreign model raises on windows means that it cannot share
        return f"it does not accept windows ({type(error).__name__})"
    finally:
        model.train(training)
