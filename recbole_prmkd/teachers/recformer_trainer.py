"""Recformer's two-stage fine-tuning (algorithm 1 of the paper), around RecBole's own trainer.

Stage 1 encodes all items before each epoch and trains the encoder against that table, until the validation metric
stops gaining. Stage 2 goes back to the best encoder and its table, leaves the table alone and trains on. Where the
authors keep one optimizer and a learning rate that has decayed to zero by then, stage 2 goes on with the best
epoch's optimizer and a constant rate.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.recformer import Recformer

_POOL = 16  # batches whose examples are sorted by length together
TRAINING_COST = 4  # tokens/s of encoding alone against those of training, measured with MiniLM on a CPU


class RecformerTrainer(Trainer):
    """RecBole's trainer, run once per stage; both stages stop early and share the best score."""

    epochs: int
    start_epoch: int

    def __init__(self, config: Config, model: Recformer) -> None:
        super().__init__(config, model)
        self.items_frozen = False
        self.sampled: SampledExamples | None = None
        if config["rows_per_epoch"] not in {"user", "all"}:
            raise UserError(f"rows_per_epoch {config['rows_per_epoch']!r} is not legal: user or all.")

    def fit(
        self,
        train_data: AbstractDataLoader,
        valid_data: AbstractDataLoader | None = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Both stages; without validation data, or where nothing may be saved, the first alone.

        Returns:
            best validation score and result of the two.
        """
        rest = (train_data, valid_data, verbose, saved, show_progress, callback_fn)
        self.items_frozen = False
        best = super().fit(*rest)
        stage_two = self.config["stage_two_epochs"]
        if not (self.epochs and stage_two and valid_data and saved):
            return best
        self.resume_checkpoint(self.saved_model_file)  # encoder, item table and optimizer of the best epoch
        self.items_frozen = True
        self.cur_step, self.stopping_step = 0, self.config["stage_two_stopping_step"]
        self.epochs = self.start_epoch + stage_two
        self.logger.info(f"Recformer stage 2: from epoch {self.start_epoch - 1}, item vectors frozen.")
        return super().fit(*rest)

    def _train_epoch(
        self,
        train_data: AbstractDataLoader,
        epoch_idx: int,
        loss_func: Callable[[Interaction], Tensor] | None = None,
        show_progress: bool = False,
    ) -> Any:
        if not self.config["single_spec"]:
            examples: Any = train_data  # several processes: RecBole's own sampler must share the examples out
        else:
            examples = self._sampled(train_data)
        with torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
            if epoch_idx == 0:
                self.model.encode_items()  # where a table was made already, it was by these same weights
            elif not self.items_frozen:
                self.model.refresh_items()
        if epoch_idx == 0 and self.model.tokens_per_second:
            self._log_cost(examples)
        return super()._train_epoch(examples, epoch_idx, loss_func, show_progress)

    def _sampled(self, train_data: AbstractDataLoader) -> "SampledExamples":
        if self.sampled is None or self.sampled.loader is not train_data:
            self.sampled = SampledExamples.of(self.config, train_data, self.model)
        return self.sampled

    def _log_cost(self, sampled: "SampledExamples") -> None:
        """What an epoch will cost, from the speed at which the items were encoded and the examples' mean length."""
        model, length = self.model, float(sampled.lengths.float().mean())
        items = model.n_items - 1
        work = len(model.item_tokens.ids) + TRAINING_COST * sampled.number * length
        self.logger.info(
            f"Recformer: an epoch encodes {items} items and trains on {sampled.number} examples of {length:.0f} "
            f"tokens: about {work / model.tokens_per_second:.0f} s at {model.tokens_per_second:.0f} tokens/s, at most "
            f"{self.epochs} + {self.config['stage_two_epochs']} epochs."
        )


class SampledExamples:
    """A RecBole training loader that samples its examples anew for each epoch, those of similar length together.

    The authors take one random prefix per user and epoch. A batch is padded to its maximum length, so that examples are
    sorted by length inside pools of `_POOL` batches.
    """

    def __init__(self, loader: AbstractDataLoader, user_field: str, one_per_user: bool, limit: int) -> None:
        """one_per_user: one random example of each user, not all; limit: the most that an epoch takes, 0: no limit."""
        self.loader, self.step = loader, int(loader.step)
        self.users: Tensor = loader._dataset.inter_feat[user_field]  # [N]
        self.one_per_user = one_per_user
        number = len(torch.unique(self.users)) if one_per_user else len(self.users)
        self.number = min(number, limit or number)
        self.lengths = torch.zeros_like(self.users)  # [N]

    @classmethod
    def of(cls, config: Config, loader: AbstractDataLoader, model: Recformer) -> "SampledExamples":
        """As the settings say, with the examples' lengths in tokens."""
        one_per_user = config["rows_per_epoch"] == "user"
        sampled = cls(loader, config["USER_ID_FIELD"], one_per_user, config["max_rows_per_epoch"])
        device = model.item_embedding.weight.device
        for index in torch.arange(len(sampled.users)).split(1 << 14):
            batch = loader._dataset[index].to(device)
            lengths = model.item_tokens.lengths(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN])
            sampled.lengths[index] = lengths.cpu()
        return sampled

    def __len__(self) -> int:
        return math.ceil(self.number / self.step)

    def __iter__(self) -> Iterator[Interaction]:
        pools = self._chosen().split(_POOL * self.step)
        batches = [batch for pool in pools for batch in pool[self.lengths[pool].argsort(stable=True)].split(self.step)]
        for turn in torch.randperm(len(batches), generator=self.loader.generator).tolist():
            yield self.loader.collate_fn(batches[turn].tolist())

    def _chosen(self) -> Tensor:
        """Numbers of the epoch's examples in random order."""
        shown = torch.as_tensor(vars(self.loader)["dataset"])  # all, or those that a curriculum shows
        order = shown[torch.randperm(len(shown), generator=self.loader.generator)]  # [N]
        if self.one_per_user:
            order = order[torch.argsort(self.users[order], stable=True)]  # each user's examples, shuffled
            users = self.users[order]
            first = torch.ones_like(users, dtype=torch.bool)
            first[1:] = users[1:] != users[:-1]
            order = order[first]  # [users]
            order = order[torch.randperm(len(order), generator=self.loader.generator)]
        return order[: self.number]  # a curriculum may show fewer
