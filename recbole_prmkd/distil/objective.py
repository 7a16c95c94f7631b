"""The method on one screen: a batch -> kd_loss. Start at `Objective.__call__`.

    candidates    positives of the batch, optionally the items that teachers or student rank first;
                  false negatives are masked                                                        [B, C]
    scores        of each teacher, from the teacher cache                                           [T, B, C]
    soft targets  softmax at the teacher's own temperature                                          [T, B, C]
    confidence    how far each teacher is trusted on each example                                   [T, B]
    consistency   whether it agrees with the others on a candidate                                  [T, B, C]
    target        weighted sum or product, renormalised                                             [B, C]
    kd_loss       KL(target || softmax(student scores / temperature)) x temperature^2

arXiv 2401.00797; what the paper leaves open is our choice and a key in `properties/kd.yaml`.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from logging import getLogger
from typing import Any, NamedTuple

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.distil.baselines import method_of
from recbole_prmkd.distil.candidates import (
    PADDING,
    SOURCES,
    Exclusions,
    candidate_mask,
    distinct,
    history_negatives,
    in_batch_items,
    ranked_first,
    sample,
    sampled_candidates,
    target_columns,
)
from recbole_prmkd.distil.formula import formula
from recbole_prmkd.distil.losses import kd_loss
from recbole_prmkd.distil.method_steps import MethodSteps
from recbole_prmkd.distil.shown import HeldOutWeights, Shown
from recbole_prmkd.distil.weighting import CONFIDENCE, CONSISTENCY, agreement, by_prior, fuse, soft_targets
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.processes import WEIGHT, gathered, mean_over_ranks, ranks, weighted
from recbole_prmkd.students.adapter import StudentAdapter
from recbole_prmkd.students.probe import decide, described
from recbole_prmkd.teacher_cache.scores import TeacherCache
from recbole_prmkd.teacher_cache.top_items import TopItems

_AT_ONCE = 1 << 18  # teachers x examples x candidates that a CPU's thread weighs at a time: what its cache holds


class Candidates(NamedTuple):
    """A batch's candidates: parts [M] for all examples or [B, M] of each, which side by side are C candidates.

    columns: [B] of each example's target. mask: [B, C], which candidates count.
    """

    parts: list[Tensor]
    columns: Tensor
    mask: Tensor


class Fused(NamedTuple):
    """The fused target, and what explains it, for each example.

    target: [B, C]. covered: [B, C] bool, candidates that a teacher covers; of others the target says nothing, not that
    they are bad. weights: [B, T], the teachers' mean weights. inconsistent, marks: [B], numbers of inconsistent and of
    all marks. agreement: [B].
    """

    target: Tensor
    covered: Tensor
    weights: Tensor
    inconsistent: Tensor
    marks: Tensor
    agreement: Tensor


class Objective:
    """kd_loss of a batch, and the running means that explain an epoch.

    Args:
        train: the training examples.
        excluded: the items that are no negatives of them.
        top_items: what each teacher ranks first for them, where `kd_candidates` asks for it.
    """

    def __init__(
        self,
        config: Config,
        teacher_cache: TeacherCache,
        train: Examples,
        excluded: Exclusions,
        student: StudentAdapter,
        top_items: TopItems | None = None,
    ) -> None:
        self.config, self.teacher_cache, self.train, self.student = config, teacher_cache, train, student
        self.device = teacher_cache.device
        rank, self._processes = ranks(config)
        self.generator = torch.Generator().manual_seed(config["seed"])  # the same sample in all processes
        # A process's own part of a batch has its own length, so what is sampled from it must not move the common one.
        self.own_generator = self.generator
        if self._processes > 1:
            self.own_generator = torch.Generator().manual_seed(config["seed"] + 1 + rank)
        method = method_of(config["kd_loss"])  # of another paper, taken as it has it
        self.baseline = None if method is None else MethodSteps(method, config, teacher_cache, train, student)
        self._sums: dict[tuple[str, ...], tuple[Tensor, int]] = {}  # of numbers over batches, and how many have them
        self.excluded, self.top_items = excluded, top_items
        self.held_out = HeldOutWeights(teacher_cache, config["kd_fusion"] == "product", train, top_items)
        self._sources = SOURCES[config["kd_candidates"]]
        self._batches, self._batch = 1, 0  # of the pass over the data: how many, and those that have begun
        self._logged = False  # the formula, on the first batch, which decides what depends on the student

    def __call__(self, batch: Interaction) -> Tensor:
        """kd_loss of the batch whose own loss `student.rec_loss` has just computed; a scalar, float32."""
        student = self.student
        if student.family is None:  # on the first batch
            decide(student, batch)
        positions, examples = student.positives(batch, self.own_generator)  # [B] both, on the CPU as all look-ups
        targets = self.train.targets[examples]  # [B]
        items = in_batch_items(self._of_all_processes(targets))  # [C]
        if self.config["kd_candidates"] == "all":
            items = torch.arange(1, self.teacher_cache.n_items)  # [C]
        positions, examples, targets = self._at_most(positions, examples, targets)  # [B'] each
        shared = self._sample(items)
        if len(examples) == 0 or len(items) == 0:  # the batch keeps its own loss only; without items it is all padding
            student.release()
            return torch.zeros((), device=self.device)
        candidates = self._in_batch(examples, targets, items, shared)
        positions = positions.to(self.device)
        scores = [self.teacher_cache.scores(examples, *candidates.parts)]  # [T, B, C]
        for added, its_scores in self._ranked_first(batch, positions, examples):
            candidates = _with_added(candidates, added)
            scores.append(its_scores)
        teacher_scores = _side_by_side(scores)  # [T, B, C]
        shown = None
        if self.held_out.differ:
            shown = self.held_out.of(examples, targets, candidates.parts, teacher_scores)
        fused = self.fuse(teacher_scores, candidates.columns, candidates.mask, shown)
        student_scores = self._student_scores(batch, positions, candidates)  # [B, C]
        if self.baseline is not None:
            again = partial(self._student_scores, batch, positions, candidates)
            loss = self.baseline.loss(
                batch, positions, examples, candidates, teacher_scores, fused, student_scores, self.temperature, again
            )
        else:
            target, counted = fused.target, fused.covered  # [B, C]
            if self.with_negatives:
                student_scores, target, counted = self._with_history(
                    batch, positions, examples, student_scores, target, counted
                )  # [B, C + L]
            loss = kd_loss(student_scores, target, counted, self.temperature, self.config["kd_loss"])
        if WEIGHT in batch:  # one of several processes' parts
            loss = weighted(loss, batch)
        student.release()
        self._log_once(candidates, fused)
        self._record(loss, fused)
        return loss

    @torch.no_grad()
    def fuse(self, scores: Tensor, columns: Tensor, mask: Tensor, shown: Shown | None = None) -> Fused:
        """The fused target from scores [T, B, C], NaN where a teacher does not cover the example or the candidate.

        Args:
            columns: [B] of each example's target.
            mask: [B, C], which candidates count.
            shown: what held-out examples say of the teachers, where it differs between examples.
        """
        shown, size = shown or self.held_out.common, len(mask)
        if scores.device.type == "cpu":  # no example needs another one, and block by block takes half the time
            size = max(1, torch.get_num_threads() * _AT_ONCE // scores[:, 0].numel())
        parts = [slice(start, start + size) for start in range(0, len(mask), size)]
        alike = shown is self.held_out.common
        blocks = (
            self._fuse_block(scores[:, part], columns[part], mask[part], shown if alike else shown.part(part))
            for part in parts
        )
        return Fused(*map(torch.cat, zip(*blocks, strict=True)))

    def _fuse_block(self, scores: Tensor, columns: Tensor, mask: Tensor, shown: Shown) -> Fused:
        config, cache = self.config, self.teacher_cache
        mask = mask.to(scores)  # [B, C], 1 or 0, as is covered: faster than bool
        covered = torch.eq(scores, scores, out=torch.empty_like(scores)).mul_(mask)  # [T, B, C]; NaN != NaN
        number = covered.sum(-1, keepdim=True)  # [T, B, 1]
        covers_example = number.squeeze(-1) > 0  # [T, B]
        # Of few candidates each is more probable than of many: a teacher's probabilities sum to the share it covers.
        share = number / mask.sum(-1, keepdim=True).clamp(min=1)  # [T, B, 1]
        soft = soft_targets(scores, cache.temperature, mask)  # [T, B, C]
        agreed = agreement(soft, covers_example)  # [B]
        soft.mul_(share)
        confidence = CONFIDENCE[config["kd_confidence"]](soft, columns, covers_example, cache.validation)  # [T, B]
        if shown.prior is not None:
            confidence = by_prior(confidence, shown.prior)  # [T, B]
        marks = CONSISTENCY[config["kd_consistency"]](soft, covered, mask)  # [T, B, C]
        if shown.gated is not None:
            confidence, logs = shown.gated  # [T, B, C]
            soft = logs.nan_to_num(nan=-torch.inf).exp().mul_(mask)  # [T, B, C], all on the scale of a guess
        damping = config["kd_consistency_damping"]
        target, weights = fuse(soft, confidence, marks, damping, covered, mask, shown.sharpness)
        weight = weights.sum(-1).T  # [B, T]
        mean_weight = weight / weight.sum(1, keepdim=True).clamp(min=1)  # [B, T]; each covered candidate counts 1
        inconsistent, all_marks = (covered - marks).sum((0, 2)), covered.sum((0, 2))  # [B] both
        return Fused(target, covered.amax(0) > 0, mean_weight, inconsistent, all_marks, agreed)

    # Candidates -----------------------------------------------------------------------------------------------

    def _at_most(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """At most `kd_max_rows` examples of a batch, sampled anew: the same ones of each column [B]."""
        number, limit = len(columns[0]), self.max_examples
        if limit is None or number <= limit:
            return columns
        chosen = torch.randperm(number, generator=self.own_generator)[:limit].sort().values
        return tuple(column[chosen] for column in columns)

    def _of_all_processes(self, targets: Tensor) -> Tensor:
        """The targets of the whole batch, of which this process has a part."""
        return gathered(targets.to(self.device), self.config).cpu() if self._processes > 1 else targets

    def _sample(self, items: Tensor) -> Tensor | None:
        """Candidates that all examples share beside their own targets [M], the same in all processes; None: all."""
        pairs = self.student.in_pairs
        if self.config["kd_candidates"] == "all":
            if pairs:
                raise UserError(
                    f"{self.config['model']} scores items one by one, and kd_candidates=all needs the scores of all: "
                    "use kd_candidates=batch or teacher_top."
                )
            return None
        width = self.config["kd_pair_candidates" if pairs else "kd_max_candidates"]
        return sample(items, width, self.generator) if pairs or (width and len(items) > width) else None

    def _in_batch(self, examples: Tensor, targets: Tensor, items: Tensor, shared: Tensor | None) -> Candidates:
        if shared is None:
            parts, columns = [items], target_columns(items, targets)
            mask = candidate_mask(items, targets, self.excluded(examples, items))  # [B, C]
        else:
            own_first, mask = sampled_candidates(shared, targets, self.excluded(examples, shared))  # [B, 1 + M] both
            parts, columns = [own_first[:, :1], shared], torch.zeros_like(targets)
        return Candidates([part.to(self.device) for part in parts], columns.to(self.device), mask.to(self.device))

    def _ranked_first(self, batch: Interaction, positions: Tensor, examples: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Further candidates for each source of `kd_candidates`: items [B, M] and their scores [T, B, M]."""
        sources = {"teacher": self._teachers_first, "student": self._student_first}
        for source in self._sources:
            yield sources[source](batch, positions, examples)

    def _teachers_first(self, batch: Interaction, positions: Tensor, examples: Tensor) -> tuple[Tensor, Tensor]:
        assert self.top_items is not None, "this kd_candidates needs top_items"
        items, scores = self.top_items.of(examples)
        return items.to(self.device), scores.to(self.device)

    def _student_first(self, batch: Interaction, positions: Tensor, examples: Tensor) -> tuple[Tensor, Tensor]:
        all_scores = self.student.all_scores(batch, positions)  # [B, n_items]
        position, item = (part.to(self.device) for part in self.excluded(examples))  # [P] both
        items = ranked_first(all_scores, self.config["kd_top_items"], (position, item))
        return items, self.teacher_cache.scores(examples, items)

    def _student_scores(self, batch: Interaction, positions: Tensor, candidates: Candidates) -> Tensor:
        parts = candidates.parts
        if self.student.in_pairs:  # in one forward pass
            parts = [torch.cat([part.expand(len(positions), -1) for part in parts], dim=1)]  # [B, C]
        return _side_by_side([self.student.scores(batch, positions, part) for part in parts])

    @property
    def with_negatives(self) -> bool:
        """Whether the history's items are negatives: the student ranks them, and need not run once for each."""
        return self.config["kd_history_negatives"] and self.student.sequential and not self.student.in_pairs

    def _with_history(
        self,
        batch: Interaction,
        positions: Tensor,
        examples: Tensor,
        student_scores: Tensor,
        target: Tensor,
        counted: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Student's scores, target and what counts, with the history beside the candidates; none of it has a share."""
        item_seq, _ = self.train.histories(examples, self.config["MAX_ITEM_LIST_LENGTH"])
        items = history_negatives(item_seq, self.train.targets[examples]).to(self.device)  # [B, L]
        scores = torch.cat([student_scores, self.student.scores(batch, positions, items)], dim=1)  # [B, C + L]
        target = torch.cat([target, target.new_zeros(items.shape)], dim=1)
        return scores, target, torch.cat([counted, items != PADDING], dim=1)

    # Strength and period; decided on the student's first batch ------------------------------------------------

    @property
    def weight(self) -> float:
        """Of kd_loss beside the student's own loss; teachers that deserve little of the mixture teach little."""
        return (
            self.config["kd_weight"]
            * self.teacher_cache.trust.strength
            * (1.0 if self.baseline is not None else self.student.kd.weight)
        )

    @property
    def temperature(self) -> float:
        """Of the student's scores."""
        return self.config["kd_temperature"] * (1.0 if self.baseline is not None else self.student.kd.temperature)

    @property
    def max_examples(self) -> int | None:
        """Examples of a batch that kd_loss is computed on, at most; None: all."""
        most = self.config["kd_max_rows"]
        return self.student.kd.rows if most == "auto" else most

    @property
    def every(self) -> int:
        """Period of kd_loss in batches."""
        if self.config["kd_every"] != "auto":
            return self.config["kd_every"]
        return self.student.kd.every if self.config["shuffle"] else 1  # else the same examples were left out for ever

    @property
    def every_factor(self) -> float:
        """Batches for each that has a kd_loss. Times this, its gradients sum to those of a kd_loss in all batches."""
        return self._batches / math.ceil(self._batches / self.every)

    def summary(self) -> dict[str, Any]:
        """What was found out about the student, and the strength that follows, as result.json has it."""
        return {
            **described(self.student),
            "weight": self.weight,
            "temperature": self.temperature,
            "rows": self.max_examples,
            "period": self.every,
        }

    def begin(self, epoch: int, batches: int) -> None:
        """A pass over the training data starts; batches: how many it has."""
        self._batches, self._batch = batches, 0
        if self.baseline is not None:
            self.baseline.epoch = epoch

    def due(self) -> bool:
        """Whether the next batch has a kd_loss; the first of a pass has one. Call it once a batch."""
        position = self._batch % self._batches
        self._batch += 1
        return position % self.every == 0

    # What explains an epoch -----------------------------------------------------------------------------------

    def note(self, names: Sequence[str], values: Tensor) -> None:
        """Add a batch's numbers [len(names)] to the epoch's means; they stay on the device: to read them would wait."""
        total, batches = self._sums.get(tuple(names), (0, 0))
        self._sums[tuple(names)] = total + values.detach().double(), batches + 1

    def epoch_means(self) -> dict[str, float]:
        """Means over the batches since the last call: kd_loss, teacher weights, inconsistent share, agreement..."""
        means: dict[str, float] = {}
        for names, (total, batches) in self._sums.items():
            means |= zip(names, (total / batches).tolist(), strict=True)
        self._sums = {}
        return mean_over_ranks(means, self.config)

    def _record(self, loss: Tensor, fused: Fused) -> None:
        """Note a batch's numbers; means over its examples are over those that a teacher covers."""
        least = 1 / len(fused.target)
        teaching = fused.covered.sum(1) > 1  # a target over one candidate says nothing
        columns = [fused.target.sum(-1) == 0, teaching, fused.inconsistent, fused.marks, fused.agreement]
        of_each = torch.stack([column.double() for column in columns], dim=1)  # [B, 5]
        means = torch.cat([of_each, fused.weights.double()], dim=1).mean(0)  # [5 + T]
        without, taught, inconsistent, marks = means[:4]
        of_covered = means[4:] / (1 - without).clamp(min=least)  # [1 + T]
        one = torch.stack([loss.detach().double(), without, taught, inconsistent / marks.clamp(min=least)])
        weights = [f"weight_{teacher.name}" for teacher in self.teacher_cache.teachers]
        names = ["kd_loss", "rows_without_knowledge", "teaching", "inconsistent", "agreement", *weights]
        self.note(names, torch.cat([one, of_covered]))

    def _log_once(self, candidates: Candidates, fused: Fused) -> None:
        if self._logged:
            return
        self._logged = True
        number, width = candidates.mask.shape
        period = f" It is computed every {self.every} batches, times that number." if self.every > 1 else ""
        getLogger().info(str(self))
        getLogger().info(f"kd_loss on {number} examples of the first batch, {width} candidates each.{period}")

    def __str__(self) -> str:
        return formula(self)


def _with_added(candidates: Candidates, items: Tensor) -> Candidates:
    """The candidates with further items [B, M], each of which counts where it is new."""
    mask = torch.cat([candidates.mask, distinct(items, *candidates.parts)], dim=1)  # [B, C + M]
    return Candidates([*candidates.parts, items], candidates.columns, mask)


def _side_by_side(parts: list[Tensor]) -> Tensor:
    """The parts beside each other, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
