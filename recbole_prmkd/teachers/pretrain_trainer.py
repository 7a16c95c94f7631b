"""RecBole's trainer with the validation of pre-training: how often a held-out history finds its target in the batch."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer
from torch import Tensor

from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.contrastive import in_batch_scores
from recbole_prmkd.teachers.recformer import Recformer
from recbole_prmkd.teachers.recformer_trainer import TRAINING_COST, SampledRows


class PretrainTrainer(Trainer):
    """Trains on `pretrain_loss`; the score that early stopping follows is the in-batch accuracy (as Recformer's)."""

    model: Teacher

    def __init__(self, config: Config, model: Teacher) -> None:
        super().__init__(config, model)
        self.valid_metric_bigger = True
        self.rows: SampledRows | None = None

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[[Interaction], Tensor] | None = None,
        show_progress: bool = False,
    ) -> Any:
        if isinstance(self.model, Recformer):
            if self.rows is None:
                self.rows = SampledRows.of(self.config, train_data, self.model)
                self._say_cost(self.rows)
            train_data = self.rows
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    @torch.no_grad()
    def _say_cost(self, rows: SampledRows) -> None:
        """What an epoch will cost, from one batch without training."""
        batch = next(iter(rows)).to(self.device)
        started = time.time()
        self.model.eval()
        self.model.pretrain_vectors(batch)
        seconds = (time.time() - started) / len(batch[self.config["ITEM_ID_FIELD"]])
        passes = 4 if self.config["mlm_weight"] else 2
        self.logger.info(
            f"Recformer: an epoch trains on {rows.number} rows of {float(rows.lengths.float().mean()):.0f} tokens in "
            f"{passes} passes each; about {TRAINING_COST * passes / 2 * seconds * rows.number:.0f} s, at most "
            f"{self.epochs} epochs."
        )

    def _valid_epoch(
        self, valid_data: Sequence[Interaction], show_progress: bool = False
    ) -> tuple[float, dict[str, float]]:
        accuracy = self.in_batch_accuracy(valid_data)
        return accuracy, {"in-batch accuracy": accuracy}

    @torch.no_grad()
    def in_batch_accuracy(self, batches: Sequence[Interaction]) -> float:
        """Share of the rows whose own target has the highest cosine among the batch's targets."""
        self.model.eval()
        hits = rows = 0
        for batch in batches:
            with torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
                histories, keys = self.model.pretrain_vectors(batch.to(self.device))
            targets = batch[self.config["ITEM_ID_FIELD"]].to(self.device)  # [R]
            best = in_batch_scores(histories.float(), keys.float(), 1.0).argmax(dim=1)
            hits += int((targets[best] == targets).sum())
            rows += len(targets)
        return hits / max(rows, 1)
