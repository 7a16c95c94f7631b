"""What teachers have shown on held-out examples, in the form that weighting needs.

One number of each teacher, one for each kind of example (`kd_confidence=calibrated`), or one for each candidate
(`kd_confidence=gate`). `teachers.trust` finds them.

Axes: T teachers, B examples, C candidates.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.teacher_cache.gate import About, Gate, relative
from recbole_prmkd.teacher_cache.scores import TeacherCache
from recbole_prmkd.teacher_cache.top_items import TopItems


class Shown(NamedTuple):
    """For a batch, or a part of it.

    prior: [T] or [T, B], the factor on each teacher's confidence; None: all alike. sharpness: of a product, a number or
    [B, 1]; None: a sum. gated: of a gate, exponents [T, B, C], which take the place of both, and the teachers'
    logarithms among all items [T, B, C], NaN: not covered.
    """

    prior: Tensor | None
    sharpness: float | Tensor | None
    gated: tuple[Tensor, Tensor] | None = None

    def part(self, examples: slice) -> "Shown":
        """Of some of the examples."""
        prior = self.prior[:, examples] if self.prior is not None and self.prior.dim() == 2 else self.prior
        sharpness = self.sharpness[examples] if isinstance(self.sharpness, Tensor) else self.sharpness
        gated = None if self.gated is None else (self.gated[0][:, examples], self.gated[1][:, examples])
        return Shown(prior, sharpness, gated)


def about(train: Examples, n_items: int) -> About:
    """What weights by kind and gates know of training examples and items."""
    return About(train.lengths, torch.bincount(train.targets, minlength=n_items))


class HeldOutWeights:
    """Makes what is `Shown` of each batch; `common` where examples do not `differ`.

    Args:
        train: the training examples, in the student's ids.
        top_items: with the teachers' profiles, where the trust has a gate.
    """

    def __init__(self, cache: TeacherCache, product: bool, train: Examples, top_items: TopItems | None) -> None:
        self.cache, self.product, self.top_items = cache, product, top_items
        trust = cache.trust
        self.differ = trust.gate is not None or trust.groups is not None  # from example to example
        if self.differ:
            self.about = about(train, cache.n_items)
        alike = len({*trust.priors}) == 1  # the check has told no teacher from another
        self.common = Shown(None if alike else cache.prior, trust.sharpness if product else None)

    def of(self, examples: Tensor, targets: Tensor, items: list[Tensor], scores: Tensor) -> Shown:
        """For a batch.

        Args:
            examples, targets: [B] numbers and student's ids, on the CPU.
            items: the candidates, [M] for all examples or [B, M], beside each other C.
            scores: [T, B, C] of the teachers.
        """
        trust, device = self.cache.trust, scores.device
        if trust.gate is not None:
            assert self.top_items is not None, "a gate needs the teachers' profiles"
            profiles = self.top_items.profiles_of(examples).to(device)  # [T, B, P]
            logs = relative(scores / self.cache.temperature[:, None, None], profiles)  # [T, B, C]
            exponents = self._exponents(trust.gate, logs, profiles, items, self.about.lengths[examples].to(device))
            return Shown(None, exponents.sum(0) if self.product else None, (exponents, logs))
        assert trust.groups is not None, "the teachers count alike for all examples: take `common`"
        prior = trust.groups.priors[trust.groups.of(self.about, examples, targets)].to(device)  # [B, T]
        return Shown(prior.T, prior.sum(1, keepdim=True) if self.product else None)

    def _exponents(self, gate: Gate, logs: Tensor, profiles: Tensor, items: list[Tensor], lengths: Tensor) -> Tensor:
        """[T, B, C]. Items that were sampled for all examples count by the base: the gate is fitted to first items."""
        sampled = items[0].dim() == 2  # else the items of all examples hold their targets
        widths, popularity = [part.shape[-1] for part in items], self._popularity(logs.device)
        found = [
            gate.without_net(its_logs.isfinite())
            if sampled and part.dim() == 1
            else gate.weighed(its_logs, profiles, popularity[part.expand(len(lengths), -1)], lengths)
            for part, its_logs in zip(items, logs.split(widths, dim=2), strict=True)
        ]
        return torch.cat(found, dim=2)

    def _popularity(self, device: torch.device) -> Tensor:
        if self.about.popularity.device != device:
            self.about = self.about._replace(popularity=self.about.popularity.to(device))
        return self.about.popularity
