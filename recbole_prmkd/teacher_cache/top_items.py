"""The items that the teachers rank first for each training example, scored once and stored.

They depend on teachers, data and masks alone, so that runs with other seeds or students, and all trials of a sweep,
share one stored folder. Our choice of candidates; arXiv 2401.00797 has in-batch candidates alone.

Axes: N training examples, T teachers, M items of an example over all teachers, B examples of a batch, P excluded pairs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from recbole_prmkd.storage import store
from recbole_prmkd.teacher_cache.gate import PROFILE, About, profile, relative
from recbole_prmkd.teacher_cache.scores import TeacherCache

VERSION = "1.0"  # raise it when the same caches and exclusions give other items or scores
KIND = "top-items"
_SHORTLIST = 2  # times as many items of each teacher, among which a gate ranks
_SCORES = 1 << 24  # teachers x examples x items that are scored at a time

# Example numbers [B] -> positions [P] in these B and items [P] that are no candidates of theirs.
Excluded = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TopItems:
    """Items [N, M] int32 in the student's ids, 0 where a teacher covers too few, and their scores [T, N, M] float32.

    Both are memory-mapped. The first M / T items of an example are the first teacher's, best first, and so on; or all
    are those of the fused target. The scores are those of all teachers, NaN where one does not cover the example
    or the item. profiles: [T, N, P] of the scores of all items, for a gate.
    """

    items: np.ndarray
    scores: np.ndarray
    profiles: np.ndarray | None = None

    def of(self, examples: Tensor) -> tuple[Tensor, Tensor]:
        """Items [B, M] int64 and scores [T, B, M] of these examples [B]; all on the CPU."""
        index = examples.numpy()
        items, scores = torch.from_numpy(self.items[index]), torch.from_numpy(self.scores[:, index])
        return items.long(), scores

    def profiles_of(self, examples: Tensor) -> Tensor:
        """The teachers' profiles of these examples [B], [T, B, P] on the CPU."""
        assert self.profiles is not None, "only a gate has profiles"
        return torch.from_numpy(self.profiles[:, examples.numpy()])


def load_or_compute(
    cache: TeacherCache,
    examples: int,
    number: int,
    excluded: Excluded,
    identity: Mapping[str, Any],
    root: Path,
    rebuild: bool = False,
    product: bool = False,
    about: About | None = None,
) -> TopItems:
    """The stored top items of these teachers and examples, computed now where none match.

    Args:
        cache: its vectors, their order and its numbering of the items (shuffled or not) are part of what must match.
        examples: number of training examples, N.
        number: items of an example over all teachers, as many of each (fewer distinct ones where they agree); at
            least one.
        excluded: what `identity` describes.
        identity: all that `excluded` depends on: digests of the examples, and the settings of the masks.
        root: folder of the data set inside the cache directory.
        rebuild: compute them whatever is stored.
        product: the items that the product of the teachers' soft targets puts first (`kd_fusion`), in the place of
            those of each teacher.
        about: the examples and items, where the cache's teachers have a gate. Then the items are those that the gate
            puts first among `_SHORTLIST` times as many of each teacher and of their product.
    Raises:
        UserError: the folder cannot be written (full disk, no permission).
    """
    wanted = store.identity(
        code=VERSION,
        teachers=[teacher.digest for teacher in cache.teachers],
        id_map=store.digest([cache.canonical]),
        number=number,
        count=examples,
        device=torch.device(cache.device).type,
        excluded=store.digest([dict(identity)]),
        **({"exponents": [float(power) for power in cache.trust.priors]} if product else {}),
        **({"gate": _digest(cache, about)} if about is not None else {}),
    )
    stored = None if rebuild else store.find(root, KIND, wanted)
    if stored is None:
        store.check_room(root)
        items, scores, profiles = _compute(cache, examples, number, excluded, product, about)
        files = {"items": items.int().numpy(), "scores": scores.numpy()}
        if about is not None:
            files["profiles"] = profiles.numpy()
        stored = store.save(root, KIND, wanted, files, replace=rebuild)
    return TopItems(stored.array("items"), stored.array("scores"), None if about is None else stored.array("profiles"))


def _digest(cache: TeacherCache, about: About) -> str:
    assert cache.trust.gate is not None, "what is known of the examples is for a gate"
    return store.digest([*cache.trust.gate.state_dict().values(), *about])


@torch.no_grad()
def _compute(
    cache: TeacherCache, examples: int, number: int, excluded: Excluded, product: bool, about: About | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Items [N, M] int64, M = lists x ceil(number / lists), scores [T, N, M], and profiles [T, N, P] with a gate."""
    teachers, n_items = len(cache.teachers), cache.n_items
    lists = 1 if product or about is not None else teachers
    each = min(-(-number // lists), n_items - 1)
    items = torch.arange(n_items, device=cache.device)
    first = torch.zeros(examples, lists * each, dtype=torch.int64)
    scores = torch.empty(teachers, examples, lists * each)
    profiles = torch.empty(teachers, examples if about is not None else 0, PROFILE)
    size = max(1, _SCORES // (teachers * n_items))
    for index in tqdm(torch.arange(examples).split(size), desc="teachers' first items"):
        every = cache.scores(index, items)  # [T, B, n_items]
        position, item = (part.to(cache.device) for part in excluded(index))  # [P] both
        ranked = every.nan_to_num(nan=-torch.inf)
        ranked[:, position, item] = -torch.inf
        ranked[:, :, 0] = -torch.inf
        if about is not None:
            chosen, profile_of = _by_gate(ranked, cache, about, index, each)  # [B, each]
            profiles[:, index] = profile_of.cpu()
        else:
            if product:
                ranked = _product(ranked, cache, cache.prior)  # [1, B, n_items]
            chosen = _first(ranked, each).transpose(0, 1).flatten(1)  # [B, M]
        first[index] = chosen.cpu()
        scores[:, index] = every.gather(2, chosen.expand(teachers, -1, -1)).cpu()
    return first, scores, profiles


def _first(ranked: Tensor, number: int) -> Tensor:
    """The items with the highest scores [..., n_items], best first, [..., number]; 0 where no more are covered."""
    best = ranked.topk(min(number, ranked.shape[-1] - 1), dim=-1)
    return best.indices.masked_fill(best.values == -torch.inf, 0)


def _by_gate(ranked: Tensor, cache: TeacherCache, about: About, index: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The items that the gate puts first among a shortlist, [B, number], and the teachers' profiles [T, B, P].

    Args:
        ranked: scores [T, B, n_items], -inf where a teacher does not cover the item or it is no candidate.
    """
    gate = cache.trust.gate
    assert gate is not None
    scaled = ranked / cache.temperature[:, None, None]
    profiles = profile(scaled)
    lists = _first(torch.cat([ranked, _product(ranked, cache, gate.base)]), _SHORTLIST * number)  # [T + 1, B, K]
    items = lists.transpose(0, 1).flatten(1).sort(dim=1).values  # [B, (T + 1) K]
    again = torch.zeros_like(items, dtype=torch.bool)
    again[:, 1:] = items[:, 1:] == items[:, :-1]
    logs = relative(scaled.gather(2, items.expand(len(ranked), -1, -1)), profiles)
    logs = logs.masked_fill(logs == -torch.inf, torch.nan)  # [T, B, (T + 1) K]
    popularity, lengths = (part.to(cache.device) for part in (about.popularity, about.lengths[index]))
    fused = gate.fused(logs, gate.weighed(logs, profiles, popularity[items], lengths))  # [B, (T + 1) K]
    fused = fused.masked_fill(again | (items == 0), -torch.inf)
    best = fused.topk(number, dim=1)
    return items.gather(1, best.indices).masked_fill(best.values == -torch.inf, 0), profiles


def _product(ranked: Tensor, cache: TeacherCache, prior: Tensor) -> Tensor:
    """Logarithms of the product of the soft targets, [1, B, n_items].

    As in a student's step (`distil.weighting.fuse`) an item that some teachers do not cover counts by the others.

    Args:
        ranked: scores [T, B, n_items], -inf where a teacher does not cover the item.
        prior: [T] the exponents.
    """
    covered = ranked != -torch.inf
    logs = (ranked / cache.temperature[:, None, None]).log_softmax(2)  # [T, B, n_items]
    logs += covered.sum(2, keepdim=True).log()  # of few items each is more probable than of many
    power = prior[:, None, None] * covered
    fused = (logs.masked_fill(~covered, 0) * power).sum(0)  # [B, n_items]
    total = power.sum(0)
    return (fused / total.clamp(min=1e-9)).masked_fill(total == 0, -torch.inf)[None]
