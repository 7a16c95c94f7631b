"""What the teachers say of a training split: scores of any candidates for any training examples.

A teacher that compares vectors has left its vectors, one that scores otherwise the largest scores of each training
example; `TeacherCache` asks both in one way. `build` makes and finds what is stored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from recbole_prmkd.storage import store
from recbole_prmkd.teacher_cache.gate import About, Gate


@dataclass(frozen=True)
class Trust:
    """What teachers have shown before they teach; without a check all count alike.

    priors: [T] factor on each teacher's confidence. strength: what all of them deserve beside popularity, in [0, 1].
    sharpness: the sum of the exponents, where their soft targets are multiplied (`kd_fusion`).
    groups: the same for each kind of example (`kd_confidence=calibrated`). gate: what each teacher counts for each
    candidate (`kd_confidence=gate`).
    """

    priors: Sequence[float]
    strength: float = 1.0
    sharpness: float = 1.0
    groups: "Groups | None" = None
    gate: Gate | None = None


@dataclass(frozen=True)
class Groups:
    """What teachers have shown on held-out examples of one kind, by history length and popularity of the target.

    lengths, popularity: ascending bounds between the kinds, [A] and [E]. priors: [(A + 1)(E + 1), T], the exponents of
    a product or the weights of a sum.
    """

    lengths: Tensor
    popularity: Tensor
    priors: Tensor

    def of(self, about: About, examples: Tensor, targets: Tensor) -> Tensor:
        """The kind of each example, [B]; targets: [B] in the student's ids."""
        return self.kind(about.lengths[examples], about.popularity[targets])

    def kind(self, lengths: Tensor, popularity: Tensor) -> Tensor:
        """The kind by the history's length and the target's popularity, [B] each."""
        by_length = torch.bucketize(lengths.float(), self.lengths)
        return by_length * (len(self.popularity) + 1) + torch.bucketize(popularity.float(), self.popularity)


class CachedTeacher(Protocol):
    """One teacher's part of the cache.

    name, temperature (of its softmax), holdout (its score there); digest: of all that its scores depend on.
    """

    @property
    def name(self) -> str: ...
    @property
    def temperature(self) -> float: ...
    @property
    def holdout(self) -> float: ...
    @property
    def digest(self) -> str: ...

    def vectors(self, examples: np.ndarray, items: Tensor) -> tuple[Tensor, Tensor] | None:
        """Vectors of the examples and of these items, [B, D] and [C, D]; None: it compares none."""

    def scores(self, examples: np.ndarray, candidates: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """Fill `out`, [B, C] for each of the candidates, [C] or [B, C], in canonical ids; NaN: not covered."""


class TeacherCache:
    """Scores of T teachers for any training examples and candidates.

    Attributes:
        teachers: T `CachedTeacher`, in the order of `kd_teachers`; device: of the scores; n_items: with PAD.
        temperature: [T] of each teacher's softmax; validation: [T] each teacher's holdout score.
        trust: what the check on the holdout says of them; prior: [T], its factor on each one's confidence.
        canonical: [n_items] student's item id -> canonical id.
    """

    def __init__(
        self,
        teachers: Sequence[CachedTeacher],
        canonical: Tensor,
        device: torch.device,
        trust: Trust | None = None,
    ) -> None:
        """canonical: [n_items] student's item id -> canonical id."""
        self.teachers, self.device = teachers, device
        self.canonical = canonical.to(device)
        self.n_items = len(canonical)
        self.temperature = torch.tensor([teacher.temperature for teacher in teachers], device=device)  # [T]
        self.trust = trust or Trust([1.0] * len(teachers))
        self.prior = torch.tensor(self.trust.priors, device=device)  # [T]
        self.validation = torch.tensor([teacher.holdout for teacher in teachers], device=device)  # [T]

    def scores(self, examples: Tensor, *candidates: Tensor) -> Tensor:
        """Each teacher's scores of the candidates; NaN where it does not cover the example or the candidate.

        Args:
            examples: [B] example numbers.
            candidates: each [C] for all examples or [B, C] per example, in the student's item ids.
        Returns:
            [T, B, sum of C] float32, the candidates beside each other.
        """
        columns = [self.canonical[part] for part in candidates]
        widths = [part.shape[-1] for part in columns]
        numbers = examples.cpu().numpy()
        scores = torch.empty(len(self.teachers), len(examples), sum(widths), device=self.device)
        for out, teacher in zip(scores, self.teachers, strict=True):
            teacher.scores(numbers, columns, out.split(widths, dim=1))
        return scores


@dataclass(frozen=True)
class CachedVectors:
    """One teacher's vectors: items on the device, histories of the training examples on disk."""

    name: str
    temperature: float
    holdout: float
    items: Tensor  # [n_items, D] float16, or float32
    histories: np.ndarray  # [N, D] of the same kind, memory-mapped

    @classmethod
    def of(
        cls, name: str, temperature: float, holdout: float, array: Callable[[str], np.ndarray], device: torch.device
    ) -> "CachedVectors":
        """From the stored arrays, `array("items")` and `array("rows")`."""
        items = torch.from_numpy(np.array(array("items"))).to(device)
        return cls(name, temperature, holdout, items, array("rows"))

    @cached_property
    def digest(self) -> str:
        """Hash of both arrays, on which the scores depend and nothing else."""
        return store.digest([self.items, self.histories])

    @cached_property
    def _not_covered(self) -> Tensor:
        return (self.items == 0).all(dim=1)  # [n_items]

    def vectors(self, examples: np.ndarray, items: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the examples [B] and of these items [C], in canonical ids: [B, D] and [C, D]; 0: not covered."""
        histories = torch.from_numpy(self.histories[examples]).to(self.items.device).float()
        return histories, self.items[items].float()

    def scores(self, examples: np.ndarray, candidates: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """Products of the examples' histories with the candidates; NaN where one of the two is not covered.

        Args:
            examples: [B] example numbers.
            candidates: each [C] for all examples or [B, C] per example, in canonical ids.
            out: what to fill, [B, C] for each.
        """
        history = torch.from_numpy(self.histories[examples]).to(self.items.device).float()  # [B, D]
        # One NaN in a vector makes its products NaN: cheaper than a mask of all scores.
        history[:, 0].masked_fill_(torch.linalg.vector_norm(history, dim=1) == 0, torch.nan)
        for part, block in zip(candidates, out, strict=True):
            item = self.items[part].float()  # [C, D] or [B, C, D]
            item[..., 0].masked_fill_(self._not_covered[part], torch.nan)
            if item.dim() == 2:
                torch.mm(history, item.T, out=block)
            else:
                torch.bmm(item, history.unsqueeze(-1), out=block.unsqueeze(-1))


@dataclass(frozen=True)
class Shuffled:
    """A teacher whose scores go to other items (`kd_shuffled_teachers`); order: [n_items], whose scores each gets."""

    teacher: CachedTeacher
    order: Tensor

    @property
    def name(self) -> str:
        """Of the teacher."""
        return self.teacher.name

    @property
    def temperature(self) -> float:
        """Of the teacher."""
        return self.teacher.temperature

    @property
    def holdout(self) -> float:
        """Of the teacher, with its items in order."""
        return self.teacher.holdout

    @cached_property
    def digest(self) -> str:
        """Of the teacher and the order."""
        return store.digest([self.teacher.digest, self.order])

    def vectors(self, examples: np.ndarray, items: Tensor) -> tuple[Tensor, Tensor] | None:
        """As the teacher's, of other items."""
        return self.teacher.vectors(examples, self.order[items])

    def scores(self, examples: np.ndarray, candidates: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """As the teacher's, of other items."""
        self.teacher.scores(examples, [self.order[part] for part in candidates], out)


@dataclass(frozen=True)
class CachedScores:
    """One teacher's stored scores.

    top: [N, M] int32, canonical ids in ascending order; top_scores: [N, M] float16; rest: [N] float32, of all other
    items; memory-mapped. covered: [n_items] bool.
    """

    name: str
    temperature: float
    holdout: float
    top: np.ndarray
    top_scores: np.ndarray
    rest: np.ndarray
    covered: Tensor

    @classmethod
    def of(
        cls, name: str, temperature: float, holdout: float, array: Callable[[str], np.ndarray], device: torch.device
    ) -> "CachedScores":
        """From the stored arrays, `array("top")` and so on."""
        covered = torch.from_numpy(np.array(array("covered"))).to(device)
        return cls(name, temperature, holdout, array("top"), array("scores"), array("rest"), covered)

    @cached_property
    def digest(self) -> str:
        """Hash of all arrays, on which the scores depend and nothing else."""
        return store.digest([self.top, self.top_scores, self.rest, self.covered])

    def vectors(self, examples: np.ndarray, items: Tensor) -> tuple[Tensor, Tensor] | None:
        """It has none."""
        return None

    def scores(self, examples: np.ndarray, candidates: Sequence[Tensor], out: Sequence[Tensor]) -> None:
        """The stored scores of the candidates; NaN where the example or the item is not covered.

        Args:
            examples: [B] example numbers.
            candidates: each [C] for all examples, distinct, or [B, C] per example, in canonical ids.
            out: what to fill, [B, C] for each.
        """
        device = self.covered.device
        top = torch.from_numpy(self.top[examples]).to(device)  # [B, M]
        stored = torch.from_numpy(self.top_scores[examples]).to(device).float()  # [B, M]
        rest = torch.from_numpy(self.rest[examples]).to(device)[:, None]  # [B, 1]
        for part, block in zip(candidates, out, strict=True):
            if part.dim() == 1:  # several times as fast as a search
                column = torch.full((len(self.covered),), len(part), device=device)  # [n_items]; the last: no candidate
                column[part] = torch.arange(len(part), device=device)
                wide = rest.expand(-1, len(part) + 1).contiguous()  # [B, C + 1]
                block.copy_(wide.scatter_(1, column[top.long()], stored)[:, :-1])
            else:
                item = part.int()  # [B, C]
                position = torch.searchsorted(top, item).clamp_(max=top.shape[1] - 1)  # [B, C]
                torch.where(top.gather(1, position) == item, stored.gather(1, position), rest, out=block)
            block.masked_fill_(~self.covered[part], torch.nan)
