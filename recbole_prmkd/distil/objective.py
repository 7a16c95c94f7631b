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

import math
from collections.abc import Iterator
from logging import getLogger
from typing import Any

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.distil.baselines import BASELINES, WITHOUT_TARGET, RankSettings
from recbole_prmkd.distil.candidates import Pairs, candidate_mask, in_batch_candidates, sample, sampled_candidates
from recbole_prmkd.distil.losses import kd_loss
from recbole_prmkd.distil.top_items import SOURCES, distinct, teachers_first
from recbole_prmkd.distil.weighting import CONFIDENCE, CONSISTENCY, agreement, fuse, soft_targets
from recbole_prmkd.recbole_host.processes import gathered, mean_over_ranks
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.students.windows import weighted
from recbole_prmkd.teacher_cache.scores import TeacherCache

_AT_ONCE = 1 << 18  # teachers x rows x candidates that a CPU's thread weighs at a time: what its cache holds


class Objective:
    """kd_loss of a batch, and the running means that explain an epoch."""

    def __init__(
        self, config: Config, knowledge: TeacherCache, train: Examples, future: Examples, scorer: StudentAdapter
    ) -> None:
        """train: the training rows; later: the same rows with the user's future training items as history."""
        self.config, self.knowledge, self.train, self.future, self.scorer = (
            config,
            knowledge,
            train,
            future,
            scorer,
        )
        self.generator = torch.Generator().manual_seed(config["seed"])
        self._in_order = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self._sources = SOURCES[config["kd_candidates"]]
        self._without_target = config["kd_loss"] in WITHOUT_TARGET
        self._of_a_peer = config["kd_loss"] in BASELINES  # used as its paper has it
        self._first: tuple[Tensor, Tensor] | None = None  # [N, M] items that teachers rank first, [T, N, M] cosines
        if "teacher" in self._sources:
            # A peer's list holds so many items, and each teacher may put all of them first.
            number = config["kd_top_items"] * (len(knowledge.teachers) if self._of_a_peer else 1)
            self._first = teachers_first(knowledge, len(train), number, self._excluded)
        self.epoch = 0
        self._batches, self._batch = 1, 0  # of the epoch: how many, and those that have begun
        self._sums: dict[str, tuple[Tensor, int]] = {}  # of a number over batches, and how many have it
        self._told = False  # the formula, on the first batch, which settles what the student's own loss decides

    def __str__(self) -> str:
        config = self.config
        target = " + ".join(f"w_{teacher.name} p_{teacher.name}" for teacher in self.knowledge.teachers)
        shuffled = ", shuffled over the items" if config["kd_shuffled_teachers"] else ""
        curriculum = config["kd_curriculum"]
        if curriculum != "none":
            start, length = config["kd_pacing_start"], config["kd_pacing_length"]
            curriculum += f", {config['kd_pacing']} from {start} of the rows to all in {length} epochs"
        masks = {"kd_history_mask": "history", "kd_false_negative_mask": "false negatives"}
        few = {1: " = 1 with one teacher", 2: ", of two teachers both are consistent"}.get(
            len(self.knowledge.teachers), ""
        )
        masked = " and ".join(name for key, name in masks.items() if config[key]) or "nothing"
        return (
            f"loss = rec_loss + {self.weight:g} x {config['kd_loss']}(target, student / {self.temperature:g}), "
            f"target = {target}{shuffled}, "
            f"w = confidence[{config['kd_confidence']}] x consistency[{config['kd_consistency']}, "
            f"damping {config['kd_consistency_damping']}]{few}, curriculum[{curriculum}], "
            f"candidates[{config['kd_candidates']}, without {masked}]"
        )

    def begin(self, epoch: int, batches: int) -> None:
        """An epoch starts, of one or more passes (RecVAE's) over so many batches."""
        self.epoch, self._batches, self._batch = epoch, batches, 0

    def due(self) -> bool:
        """Whether the next batch has a kd_loss; the first of a pass has one. To be asked once a batch."""
        place = self._batch % self._batches
        self._batch += 1
        return place % self.every == 0

    @property
    def times(self) -> float:
        """Batches of a pass for each that has a kd_loss: their kd_loss times this sums to that of all batches."""
        return self._batches / math.ceil(self._batches / self.every)

    @property
    def weight(self) -> float:
        """Of a kd_loss beside the student's own loss; known after the scorer's first batch."""
        return self.config["kd_weight"] * (1.0 if self._of_a_peer else self.scorer.student_defaults.weight)

    @property
    def temperature(self) -> float:
        """Of the student's scores; known after the scorer's first batch."""
        return self.config["kd_temperature"] * (1.0 if self._of_a_peer else self.scorer.student_defaults.temperature)

    @property
    def every(self) -> int:
        """Of so many batches one has a kd_loss; known after the scorer's first batch."""
        every = self.config["kd_every"]
        if every != "auto":
            return every
        return (
            self.scorer.student_defaults.every if self.config["shuffle"] else 1
        )  # else the same rows were left out for ever

    @property
    def _most(self) -> int | None:
        most = self.config["kd_max_rows"]
        return self.scorer.student_defaults.rows if most == "auto" else most

    def __call__(self, interaction: Interaction) -> Tensor:
        """kd_loss of the batch whose own loss was just computed under `scorer.watching()`; a scalar, float32."""
        config, scorer = self.config, self.scorer
        scorer.prepare(interaction)
        positions, rows = scorer.positives(interaction, self.generator)  # [B], [B]
        targets = self.train.targets[rows.cpu()].to(rows.device)  # [B]
        everyone = gathered(targets, config)
        if len(rows) == 0:  # the batch keeps its own loss only
            scorer.release()
            return torch.zeros((), device=rows.device)
        if self._most is not None and len(rows) > self._most:
            drawn = torch.randperm(len(rows), generator=self.generator)[: self._most].sort().values
            positions, rows, targets = (
                column[drawn.to(rows.device)] for column in (positions, rows, targets)
            )  # [B'] each
        items, columns = in_batch_candidates(targets, everyone)  # [C], [B]
        parts = [items]  # [C] for all rows, or [B, M] of each row's own, beside each other
        width = config["kd_pair_candidates"] if scorer.scores_pairs else config["kd_max_candidates"]
        if scorer.scores_pairs or (width and len(items) > width):
            shared = sample(items, width, self.generator)  # [M]
            items, mask = sampled_candidates(shared, targets, self._excluded(rows, shared))  # [B, 1 + M] both
            columns = torch.zeros_like(columns)  # [B]: the target stands first
            parts = [items[:, :1], shared]
        else:
            mask = candidate_mask(items, targets, self._excluded(rows, items))  # [B, C]
        cosines = [self.knowledge.scores(rows, *parts)]  # [T, B, C]
        for extra, its_cosines in self._ranked_first(interaction, positions, rows):
            mask = torch.cat([mask, distinct(extra, *parts)], dim=1)
            parts.append(extra)
            cosines.append(its_cosines)
        target, counted, *told = self._target(_joined(cosines), columns, mask)  # [B, C + M] both
        if not self._told:
            self._told = True
            some = f" Of {self.every} batches one has a kd_loss, times that number." if self.every > 1 else ""
            getLogger().info(str(self))
            getLogger().info(f"kd_loss on {len(rows)} rows of the first batch, {mask.shape[1]} candidates each.{some}")
        if scorer.scores_pairs:  # in one pass of the model
            parts = [torch.cat([part.expand(len(mask), -1) for part in parts], dim=1)]
        student = _joined([scorer.scores(interaction, positions, part) for part in parts])  # [B, C + M]
        if self._without_target:
            counted = counted.scatter(1, columns.clamp(min=0)[:, None], False)  # [B, C + M]
        settings = RankSettings.of(config, self.epoch)
        loss = kd_loss(student, target, counted, self.temperature, config["kd_loss"], settings)
        loss = weighted(loss, interaction)
        scorer.release()
        self._record(loss, target, *told)
        return loss

    def note(self, name: str, value: Tensor) -> None:
        """Add a batch's number to the epoch's mean; it stays on the device, since to read it would wait for it."""
        total, batches = self._sums.get(name, (0, 0))
        self._sums[name] = total + value.detach().double(), batches + 1

    def epoch_means(self) -> dict[str, float]:
        """Means over the batches since the last call: kd_loss, teacher weights, inconsistent share, agreement..."""
        means = {name: total.item() / batches for name, (total, batches) in self._sums.items()}
        self._sums = {}
        return mean_over_ranks(means, self.config)

    @torch.no_grad()
    def _target(self, scores: Tensor, columns: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """The fused target [B, C] from cosines [T, B, C], what it speaks of, and what explains it, a row each.

        It speaks of the candidates that a teacher knows, bool [B, C]: of others it says nothing, not that they are bad.
        The teachers' mean weights [B, T], the numbers of inconsistent and of all marks [B] of what teachers know, and
        the teachers' agreement [B].
        """
        size = len(mask)
        if scores.device.type == "cpu":  # no row needs another one, and block by block takes half the time
            size = max(1, torch.get_num_threads() * _AT_ONCE // scores[:, 0].numel())
        blocks = zip(scores.split(size, dim=1), columns.split(size), mask.split(size), strict=True)
        return tuple(map(torch.cat, zip(*(self._fused(*block) for block in blocks), strict=True)))

    def _fused(self, scores: Tensor, columns: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """`_target` from the scores [T, B, C], which are NaN where a teacher knows nothing."""
        config, knowledge = self.config, self.knowledge
        mask = mask.to(scores)  # [B, C], 1 or 0, as is known: faster than bool
        known = torch.eq(scores, scores, out=torch.empty_like(scores)).mul_(mask)  # [T, B, C]; NaN != NaN
        number = known.sum(-1, keepdim=True)  # [T, B, 1]
        knows_row = number.squeeze(-1) > 0  # [T, B]
        # Of few candidates each is more probable than of many: so a teacher's probabilities sum to the share it knows.
        share = number / mask.sum(-1, keepdim=True).clamp(min=1)
        soft = soft_targets(scores, knowledge.temperature, mask)  # [T, B, C]
        agreed = agreement(soft, knows_row)  # [B]
        soft.mul_(share)
        confidence = CONFIDENCE[config["kd_confidence"]](soft, columns, knows_row, knowledge.validation)  # [T, B]
        marks = CONSISTENCY[config["kd_consistency"]](soft, known, mask)  # [T, B, C]
        target, weights = fuse(soft, confidence, marks, config["kd_consistency_damping"], known, mask)
        weight = weights.sum(-1).T  # [B, T]
        shares = weight / weight.sum(1, keepdim=True).clamp(min=1)  # its candidates that a teacher knows count 1 each
        return target, known.amax(0) > 0, shares, (known - marks).sum((0, 2)), known.sum((0, 2)), agreed

    def _ranked_first(
        self, interaction: Interaction, positions: Tensor, rows: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Further candidates of each row for each source of `kd_candidates`: items [B, M], their cosines [T, B, M]."""
        if self._first is not None:
            items, cosines = self._first
            yield items[rows.cpu()].to(rows.device), cosines[:, rows.cpu()].to(rows.device)
        if "student" in self._sources:
            items = self.scorer.first(interaction, positions, self.config["kd_top_items"], self._excluded(rows))
            yield items, self.knowledge.scores(rows, items)

    def _excluded(self, rows: Tensor, among: Tensor | None = None) -> Pairs:
        """Items, of all or of those `among` them [C], that are no candidates of the rows.

        Returns positions [P] in the batch's rows, and items [P].
        """
        config, numbers, parts = self.config, rows.cpu(), []
        among = None if among is None else among.cpu()
        if config["kd_false_negative_mask"]:
            parts.append(self.future.history_pairs(numbers, among))
        # A student without order has its rows' earlier items as false negatives too.
        if config["kd_history_mask"] or (config["kd_false_negative_mask"] and not self._in_order):
            parts.append(self.train.history_pairs(numbers, among))
        if self._without_target:
            parts.append((torch.arange(len(numbers)), self.train.targets[numbers]))
        parts = parts or [(numbers[:0], numbers[:0])]
        positions, items = (torch.cat(column) for column in zip(*parts, strict=True))
        return positions.to(rows.device), items.to(rows.device)

    def _record(
        self, loss: Tensor, target: Tensor, shares: Tensor, inconsistent: Tensor, marks: Tensor, agreed: Tensor
    ) -> None:
        """Note a batch's numbers; means over its rows are over those that a teacher knows."""
        without = (target.sum(-1) == 0).double().mean()
        known = (1 - without).clamp(min=1 / len(target))
        values = {
            "kd_loss": loss,
            "rows_without_knowledge": without,
            "inconsistent": inconsistent.double().sum() / marks.double().sum().clamp(min=1),
            "agreement": agreed.double().mean() / known,
        }
        for teacher, share in zip(self.knowledge.teachers, shares.double().mean(0) / known, strict=True):
            values[f"weight_{teacher.name}"] = share
        for name, value in values.items():
            self.note(name, value)


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts beside each other, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def described(values: dict[str, Any]) -> str:
    """One line of numbers for the log."""
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
