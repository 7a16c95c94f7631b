"""Windows: one forward pass over a window of a user's items gives the vectors of all its prefixes.

RecBole trains a sequential model on one padded row per prefix. A causal model's state at position p depends on the
items up to p alone, so one window serves all examples whose target lies in it. The model is not edited: while
`WindowedModel.methods` are in place, its own loss and scores of a batch of windows cover all examples of the batch.

What differs from RecBole: the examples of a window share a batch, and a target deep in a long history sees at least
`context` items before it, not always the maximum.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor

from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.recbole_host.processes import WEIGHT, share_of, weighted

WINDOW, OFFSET = "kd_window", "kd_offset"  # an example's window in the batch, and its last item's position there
# What a group of sequences costs beside its padding, in positions (measured on one CPU core, 64 wide): each step of a
# recurrent network, and each forward pass. On a GPU padding costs less than another forward pass.
_STEP, _FORWARD = 8, 128
_SIMILAR = 128  # histories of similar length that are ranked together: enough for full matrix products

Groups = Callable[[Tensor], list[Tensor]]  # lengths [W] -> numbers of the windows that are read together


@dataclass(frozen=True)
class Windows:
    """W windows over the flat items, and each example's position in them.

    start, length: [W]; window, offset: [N], the example's window and the position of its newest history item in it.
    """

    start: Tensor
    length: Tensor
    window: Tensor
    offset: Tensor


def windows(examples: Examples, max_length: int, context: float) -> Windows:
    """Tile each user's items so that every example with a history lies in exactly one window.

    Args:
        examples: with at least one item of history; those of one user that share a history block share windows.
        max_length: most items of a window.
        context: share of `max_length` that an example keeps as history at least (a shorter history whole).
    """
    keep = min(int(max_length * context), max_length - 1)
    step = max_length - keep
    length = examples.lengths
    turn = (length - max_length + step - 1).div(step, rounding_mode="floor").clamp(min=0)  # [N] windows further on
    first = examples.start + turn * step  # [N] where the example's window starts
    start, window = torch.unique(first, return_inverse=True)
    offset = examples.stop - first - 1
    size = torch.zeros_like(start).scatter_reduce(0, window, offset + 1, "amax")
    return Windows(start, size, window, offset)


class WindowLoader:
    """Batches of windows for RecBole's training loop; stands in for its TrainDataLoader.

    Each batch holds item_id_list [W, L], item_length [W] and user_id [W] per window, and item_id [R], kd_example [R],
    kd_window [R], kd_offset [R] per example; R is about `train_batch_size`. The batches are a pure function of (seed,
    epoch, scheduled examples).
    """

    def __init__(self, config: Config, dataset: Dataset | None, examples: Examples) -> None:
        self.config, self.dataset, self._dataset, self.examples = config, dataset, dataset, examples
        self.shuffle, self.epoch = False, 0  # False: RecBole would set the epoch of a sampler
        self._usable = torch.nonzero(examples.lengths > 0).squeeze(1)  # [N']
        self._tiles = windows(
            examples.select(self._usable), config["MAX_ITEM_LIST_LENGTH"], config["kd_window_context"]
        )
        self._scheduled: Tensor | None = None

    def schedule(self, index: Tensor | None) -> None:
        """Use these examples only (a curriculum's); None: all."""
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

    def _in_use(self) -> Tensor:
        if self._scheduled is None:
            return torch.arange(len(self._usable))
        chosen = torch.zeros(len(self.examples), dtype=torch.bool)
        chosen[self._scheduled] = True
        return torch.nonzero(chosen[self._usable]).squeeze(1)

    def batches(self) -> list[Tensor]:
        """Usable examples of each batch, by number: whole windows, in random order unless `shuffle` is off."""
        # Batches of similar lengths would pad less, but taught SASRec worse (docs/results.md): `forward` saves that.
        generator = torch.Generator().manual_seed(self.config["seed"] + 7919 * self.epoch)
        positions = self._in_use()
        number = len(self._tiles.start)
        turn = torch.randperm(number, generator=generator) if self.config["shuffle"] else torch.arange(number)  # [W]
        positions = positions[
            torch.argsort(turn[self._tiles.window[positions]], stable=True)
        ]  # [N'] in the windows' turn
        window = self._tiles.window[positions]
        first = torch.searchsorted(turn[window], turn[window])  # [N'] examples in the windows before its own
        sizes = torch.unique_consecutive(first // self.config["train_batch_size"], return_counts=True)[1]
        return list(positions.split(sizes.tolist()))

    def batch(self, positions: Tensor) -> Interaction:
        """The windows of these examples; `positions` number the examples with a history, [R]."""
        tiles, examples = self._tiles, self.examples
        used, window = torch.unique(tiles.window[positions], return_inverse=True)
        length = tiles.length[used]  # [W]
        columns = torch.arange(int(length.max()))
        items = examples.items[(tiles.start[used][:, None] + columns).clamp(max=len(examples.items) - 1)]  # [W, L]
        index = self._usable[positions]  # [R]
        user = torch.empty_like(used)
        user[window] = examples.users[index]
        item = self.config["ITEM_ID_FIELD"]
        return Interaction(
            {
                item + self.config["LIST_SUFFIX"]: torch.where(columns < length[:, None], items, 0),
                self.config["ITEM_LIST_LENGTH_FIELD"]: length,
                self.config["USER_ID_FIELD"]: user,
                item: examples.targets[index],
                EXAMPLE: index,
                WINDOW: window,
                OFFSET: tiles.offset[positions],
            }
        )


def example_positions(interaction: Interaction, length: Tensor) -> tuple[Tensor, Tensor]:
    """Where each example's newest history item stands in the batch: sequence [R] and position in it [R].

    length: [B] true lengths; in a batch without windows each sequence is one example.
    """
    if WINDOW in interaction:
        return interaction[WINDOW], interaction[OFFSET]
    return torch.arange(len(length), device=length.device), length - 1


def least_padding(lengths: Tensor) -> list[Tensor]:
    """Groups of sequences, each to be cut to its own maximum length, at the least cost of padding and forward passes.

    Args:
        lengths: [B] of each sequence, in items.
    Returns:
        [B'] numbers of sequences, short ones first, each once; a single group on a GPU.
    """
    if lengths.device.type != "cpu":
        return [torch.arange(len(lengths), device=lengths.device)]
    sizes, counts = np.unique(lengths.numpy(), return_counts=True)
    until = np.concatenate([[0], counts.cumsum()])  # sequences shorter than sizes[i]
    cost, start = np.zeros(len(sizes) + 1), np.zeros(len(sizes) + 1, dtype=int)
    for last, size in enumerate(sizes, start=1):  # the cheapest way to cut what is no longer than `size`
        costs = cost[:last] + size * (until[last] - until[:last] + _STEP) + _FORWARD
        start[last], cost[last] = costs.argmin(), costs.min()
    order, cuts, last = lengths.argsort(stable=True), [], len(sizes)
    while last:
        cuts.append(until[last] - until[start[last]])
        last = start[last]
    return list(order.split(cuts[::-1]))


class WindowedModel:
    """A model's own methods, so that a batch of windows covers all examples of the batch.

    Args:
        config: with it, `full_sort_predict` of a plain batch cuts padding too: a causal model's state at the last
            item depends on no future position, so short histories are ranked apart from long ones.
        grouped: which windows `forward` reads together, by their lengths.
    """

    def __init__(
        self, model: AbstractRecommender, config: Config | None = None, grouped: Groups = least_padding
    ) -> None:
        self._model, self._config, self._grouped = model, config, grouped
        self._own = {
            name: getattr(model, name)
            for name in ("gather_indexes", "forward", "calculate_loss", "full_sort_predict", "encode_batch")
            if hasattr(model, name)
        }
        self._wanted: list[tuple[Tensor, Tensor]] = []  # the examples to give: window [R] and position in it [R]

    def methods(self) -> dict[str, Callable[..., Any]]:
        """What takes the place of the model's methods, by name; a batch without windows gives what it gave before."""
        return {name: getattr(self, name) for name in self._own}

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """The states of all wanted examples, [R, D], where the model asks for the last one of each sequence."""
        if not self._wanted:
            return self._own["gather_indexes"](output, gather_index)
        window, offset = self._wanted[-1]
        return output[window, offset]  # [R, D]

    def forward(self, item_seq: Tensor, *others: Tensor) -> Any:
        """The model's own, of windows [W, L] and numbers of each [W], in groups of similar length; [R, D]."""
        forward = self._own["forward"]
        if not self._wanted:
            return forward(item_seq, *others)
        length = (item_seq != 0).sum(1)  # [W]
        groups = self._grouped(length)
        if len(groups) == 1:
            return forward(item_seq, *others)
        (window, offset), vectors, order = self._wanted[-1], [], []
        for group in groups:
            place = torch.full_like(length, -1)
            place[group] = torch.arange(len(group), device=length.device)
            examples = torch.nonzero(place[window] >= 0).squeeze(1)
            max_length = int(length[group].max())
            with self._giving(place[window[examples]], offset[examples]):
                given = forward(item_seq[group, :max_length], *(other[group] for other in others))
            if len(given) != len(examples):  # a position out of range below would end a CUDA process
                raise ValueError(f"forward gave {len(given)} vectors for {len(examples)} examples")
            vectors.append(given)
            order.append(examples)
        return torch.cat(vectors)[torch.cat(order).argsort()]

    def calculate_loss(self, interaction: Interaction, *args: Any, **kwargs: Any) -> Any:
        """The mean loss over the examples, times the weight of this process's part of the batch."""
        loss = self._of_batch("calculate_loss", interaction, *args, **kwargs)
        return weighted(loss, interaction) if WEIGHT in interaction else loss

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items for each example."""
        if WINDOW in interaction or self._config is None:
            return self._of_batch("full_sort_predict", interaction)
        length = interaction[self._config["ITEM_LIST_LENGTH_FIELD"]]  # [B]
        parts = torch.argsort(length, stable=True).split(_SIMILAR)
        scores = [
            self._own["full_sort_predict"](self._cut(interaction[part], length[part])).view(len(part), -1)
            for part in parts
        ]
        back = torch.argsort(torch.cat(parts))
        return torch.cat(scores)[back]  # [B, n_items]

    def encode_batch(self, interaction: Interaction, *args: Any) -> Any:
        """A teacher's vectors of the examples."""
        return self._of_batch("encode_batch", interaction, *args)

    def _of_batch(self, name: str, interaction: Interaction, *args: Any, **kwargs: Any) -> Any:
        if WINDOW not in interaction:
            return self._own[name](interaction, *args, **kwargs)
        with self._giving(interaction[WINDOW], interaction[OFFSET]):
            return self._own[name](interaction, *args, **kwargs)

    def _cut(self, interaction: Interaction, length: Tensor) -> Interaction:
        """The batch with every list cut to its own maximum length."""
        assert self._config is not None
        max_length, suffix = int(length.max()), self._config["LIST_SUFFIX"]
        for name in interaction.columns:
            if name.endswith(suffix) and interaction[name].dim() > 1:
                interaction.interaction[name] = interaction[name][:, :max_length]
        return interaction

    @contextmanager
    def _giving(self, window: Tensor, offset: Tensor) -> Iterator[None]:
        self._wanted.append((window, offset))
        try:
            yield
        finally:
            self._wanted.pop()


@contextmanager
def replaced(model: AbstractRecommender, methods: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, these methods stand on the instance in place of the model's own; afterwards it is as it was."""
    before = {name: vars(model).get(name) for name in methods}  # None: the class's own
    for name, method in methods.items():
        setattr(model, name, method)
    try:
        yield
    finally:
        for name, function in before.items():
            model.__dict__.pop(name, None)
            if function is not None:
                setattr(model, name, function)


@contextmanager
def shared_prefixes(model: AbstractRecommender) -> Iterator[None]:
    """Inside, the model's loss, scores and vectors of a batch of windows cover all examples of the batch."""
    with replaced(model, WindowedModel(model).methods()):
        yield


@contextmanager
def without_padding(model: AbstractRecommender, config: Config) -> Iterator[None]:
    """Inside, `full_sort_predict` of plain batches gives the same scores, up to rounding, from shorter sequences.

    Only for models that `causal_check.why_not_shared` has found causal.
    """
    with replaced(model, {"full_sort_predict": WindowedModel(model, config).full_sort_predict}):
        yield
