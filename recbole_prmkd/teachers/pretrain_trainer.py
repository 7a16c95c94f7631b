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
from recbole_prmkd.teachers.recformer_trainer import TRAINING_COST, SampledExamples


class PretrainTrainer(Trainer):
    """Trains on `pretrain_loss`; the score that early stopping follows is the in-batch accuracy (as Recformer's)."""

    model: Teacher

    def __init__(self, config: Config, model: Teacher) -> None:
        super().__init__(config, model)
        self.valid_metric_bigger = True
        self.sampled: SampledExamples | None = None

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[[Interaction], Tensor] | None = None,
        show_progress: bool = False,
    ) -> Any:
        if isinstance(self.model, Recformer):
            if self.sampled is None:
                self.sampled = SampledExamples.of(self.config, train_data, self.model)
                self._log_cost(self.sampled)
            train_data = self.sampled
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    @torch.no_grad()
    def _log_cost(self, sampled: SampledExamples) -> None:
        """What an epoch will cost, from one batch without training."""
        batch = next(iter(sampled)).to(self.device)
        started = time.time()
        self.model.eval()
        self.model.pretrain_vectors(batch)
        seconds = (time.time() - started) / len(batch[self.config["ITEM_ID_FIELD"]])
        passes = 4 if self.config["mlm_weight"] else 2
        self.logger.info(
            f"Recformer: an epoch trains on {sampled.number} examples of {float(sampled.lengths.float().mean()):.0f} "
            f"tokens, with {passes} forward passes each: about "
            f"{TRAINING_COST * passes / 2 * seconds * sampled.number:.0f} s, at most {self.epochs} epochs."
        )

    def _valid_epoch(
        self, valid_data: Sequence[Interaction], show_progress: bool = False
    ) -> tuple[float, dict[str, float]]:
        accuracy = self.in_batch_accuracy(valid_data)
        return accuracy, {"in-batch accuracy": accuracy}

    @torch.no_grad()
    def in_batch_accuracy(self, batches: Sequence[Interaction]) -> float:
        """Share of the examples whose own target has the highest cosine among the batch's targets."""
        self.model.eval()
        hits = number = 0
        for batch in batches:
            with torch.autocast(device_type=self.device.type, enabled=self.enable_amp):
                histories, keys = self.model.pretrain_vectors(batch.to(self.device))
            targets = batch[self.config["ITEM_ID_FIELD"]].to(self.device)  # [R]
            best = in_batch_scores(histories.float(), keys.float(), 1.0).argmax(dim=1)
            hits += int((targets[best] == targets).sum())
            number += len(targets)
        return hits / max(number, 1)
