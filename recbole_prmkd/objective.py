"""The method on one screen: a batch -> kd_loss.

    candidates   positives of the batch; later training items of the row's user are masked; optionally the items that
                 the teachers, or the student, rank first for the row
    scores       cosines of each teacher (knowledge cache)          [T, B, C]
    soft targets softmax at the teacher's own temperature           [T, B, C]
    confidence   how far each teacher is trusted on each row        [T, B]
    consistency  whether it agrees with the others on a candidate   [T, B, C]
    target       weighted sum, renormalised                         [B, C]
    kd_loss      KL(target || softmax(student scores / temperature)) x temperature^2

arXiv 2401.00797; what the paper leaves open is our choice and a key in `properties/kd.yaml`.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_prmkd.candidates import candidate_mask, in_batch_candidates, sampled_candidates
from recbole_prmkd.dataset import ROW, Rows
from recbole_prmkd.knowledge import Knowledge
from recbole_prmkd.losses import kd_loss
from recbole_prmkd.student import StudentScorer
from recbole_prmkd.top_items import SOURCES, distinct, teachers_first
from recbole_prmkd.weighting import CONFIDENCE, CONSISTENCY, fuse, soft_targets


class Objective:
    """kd_loss of a batch, and the running means that explain an epoch."""

    def __init__(self, config: Config, knowledge: Knowledge, train: Rows, later: Rows, scorer: StudentScorer) -> None:
        """train: the training rows; later: the same rows with the user's later training items as history."""
        self.config, self.knowledge, self.train, self.later, self.scorer = (
            config,
            knowledge,
            train,
            later,
            scorer,
        )
        self._generator = torch.Generator().manual_seed(config["seed"])
        self._sources = SOURCES[config["kd_candidates"]]
        self._first: Tensor | None = None  # [N, M] what the teachers rank first for each training row
        if "teacher" in self._sources:
            self._first = teachers_first(knowledge, len(train), config["kd_top_items"], self._excluded)
        self._sums: defaultdict[str, float] = defaultdict(float)

    def __str__(self) -> str:
        config = self.config
        names = " + ".join(f"w_{teacher.name} p_{teacher.name}" for teacher in self.knowledge.teachers)
        return (
            f"loss = rec_loss + {config['kd_weight']} x {config['kd_loss']}(target, student), target = {names}, "
            f"w = confidence[{config['kd_confidence']}] x consistency[{config['kd_consistency']}, "
            f"damping {config['kd_consistency_damping']}], curriculum[{config['kd_curriculum']}], "
            f"candidates[{config['kd_candidates']}]"
        )

    def __call__(self, interaction: Interaction) -> Tensor:
        """kd_loss of the batch whose own loss was just computed under `scorer.watching()`; a scalar, float32."""
        config, scorer = self.config, self.scorer
        scorer.prepare(interaction)
        places = scorer.positives(interaction)
        rows = interaction[ROW][places]  # [B]
        targets = interaction[config["ITEM_ID_FIELD"]][places]  # [B]
        items, columns = in_batch_candidates(targets)  # [C], [B]
        excluded = self._excluded(rows)  # [B, P]
        mask = candidate_mask(items, targets, excluded)  # [B, C]
        if scorer.by_pairs:
            items, mask = sampled_candidates(items, targets, config["kd_pair_candidates"], self._generator, mask)
            columns = torch.zeros_like(columns)  # [B]: the target stands first
        parts = [items]  # [C] for all rows or [B, C], and [B, M] of each row's own
        for extra in self._ranked_first(interaction, places, rows, excluded):
            mask = torch.cat([mask, distinct(extra, *parts)], dim=1)
            parts.append(extra)
        target, weights, marks = self._target(rows, parts, columns, mask)  # [B, C + M]
        student = torch.cat([scorer.scores(interaction, places, part) for part in parts], dim=1)
        loss = kd_loss(student, target, mask, config["kd_temperature"], config["kd_loss"])
        scorer.release()
        self._record(loss, target, weights, marks, mask)
        return loss

    def epoch_means(self) -> dict[str, float]:
        """Means over the batches since the last call: kd_loss, teacher weights, inconsistent share, unknown rows."""
        batches = self._sums.pop("batches", 0.0)
        means = {name: value / batches for name, value in self._sums.items()} if batches else {}
        self._sums.clear()
        return means

    @torch.no_grad()
    def _target(
        self, rows: Tensor, parts: list[Tensor], columns: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The fused target [B, C], the teachers' weights [T, B, C] and the consistency marks [T, B, C]."""
        config, knowledge = self.config, self.knowledge
        found = [knowledge.scores(rows, part) for part in parts]
        scores, known = (torch.cat(each, dim=2) for each in zip(*found, strict=True))  # [T, B, C]
        soft = soft_targets(scores.masked_fill(~known, torch.nan), knowledge.temperature, mask)
        knows_row = known.any(-1)  # [T, B]
        confidence = CONFIDENCE[config["kd_confidence"]](soft, columns, knows_row, knowledge.validation)  # [T, B]
        marks = CONSISTENCY[config["kd_consistency"]](soft, known, mask)  # [T, B, C]
        target, weights = fuse(soft, confidence, marks, config["kd_consistency_damping"], known, mask)
        return target, weights, marks | ~known | ~mask

    def _ranked_first(
        self, interaction: Interaction, places: Tensor, rows: Tensor, excluded: Tensor
    ) -> Iterator[Tensor]:
        """Further candidates of each row, [B, M] for each source of `kd_candidates`."""
        if self._first is not None:
            yield self._first[rows.cpu()].to(rows.device)
        if "student" in self._sources:
            yield self.scorer.first(interaction, places, self.config["kd_top_items"], excluded)

    def _excluded(self, rows: Tensor) -> Tensor:
        """Items that are no candidates of the rows, [B, P] padded with 0."""
        numbers, parts = rows.cpu(), []
        if self.config["kd_false_negative_mask"]:
            parts.append(self.later.histories(numbers, len(self.later.items))[0])
        if self.config["kd_history_mask"]:
            parts.append(self.train.histories(numbers, len(self.train.items))[0])
        excluded = torch.cat(parts, dim=1) if parts else torch.zeros(len(rows), 1, dtype=torch.int64)
        return excluded.to(rows.device)

    def _record(self, loss: Tensor, target: Tensor, weights: Tensor, marks: Tensor, mask: Tensor) -> None:
        sums = self._sums
        sums["batches"] += 1
        sums["kd_loss"] += loss.item()
        sums["rows_without_knowledge"] += (target.sum(-1) == 0).float().mean().item()
        sums["inconsistent"] += (~marks).sum().item() / max(mask.sum().item() * len(marks), 1)
        share = (weights.sum(-1) / mask.sum(-1).clamp(min=1)).mean(-1)  # [T]
        for teacher, value in zip(self.knowledge.teachers, share.tolist(), strict=True):
            sums[f"weight_{teacher.name}"] += value


def described(values: dict[str, Any]) -> str:
    """One line of numbers for the log."""
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
