"""UnKD (Chen et al., WSDM 2023, arXiv 2211.14729): what a teacher says of items that are equally popular.

A teacher ranks popular items too high, and a student copies that. Within a group of items of like popularity the order
says nothing of popularity. From each group, pairs are sampled of which the teacher ranks i above j:

    L = -mean over groups and pairs of log sigmoid(s_i - s_j)

Both items of a pair are drawn with a probability proportional to exp(-rank / position), rank within the group. Our
choices:

- The `kd_popularity_groups` groups are of an example's candidates and have equal numbers of items. In the paper they
  are of all items, and the items of each have the same sum of popularity.
- All pairs of a group's first `kd_top_items` are taken, each with the product of its two probabilities, where the paper
  samples some. Each group counts alike, as by default in the authors' code. Their scale `position` is 20.

Axis: G popularity groups.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from recbole_prmkd.distil.baselines.ranking import position_weights, teacher_ranking
from recbole_prmkd.distil.baselines.step import Method, Step


def unkd(step: Step) -> Tensor:
    """Per example, the mean over its groups with pairs of the weighted mean of -log sigmoid(s_i - s_j), [B]."""
    assert step.popularity is not None
    size, number = len(step.mask), step.settings["kd_popularity_groups"]
    members = popularity_groups(step.popularity, step.mask, number).flatten(0, 1)  # [B * G, C]
    target = step.target.repeat_interleave(number, dim=0)  # [B * G, C]
    columns, listed = teacher_ranking(target, members, step.settings["kd_top_items"])  # [B * G, K]
    weights = pair_weights(listed, step.settings["kd_rank_position"]).to(step.scores)  # [B * G, K, K]
    scores = step.scores.gather(1, columns.view(size, -1)).view_as(columns)  # [B * G, K]
    pairs = -logsigmoid(scores.unsqueeze(2) - scores.unsqueeze(1))  # [B * G, K, K], [.., i, j] of i above j
    groups = (weights * pairs).sum((1, 2)).view(size, number)  # [B, G]
    with_pairs = (listed.sum(-1) > 1).view(size, number).sum(-1)  # [B]
    return groups.sum(-1) / with_pairs.clamp(min=1)


def popularity_groups(popularity: Tensor, mask: Tensor, number: int) -> Tensor:
    """Which candidates are in which group, [B, G, C] bool: equal numbers, but the equally popular stay together."""
    counted = popularity.double().masked_fill(~mask, torch.inf)  # [B, C]
    below = torch.searchsorted(counted.sort(dim=1).values, counted)  # [B, C]: how many are less popular
    group = below * number // mask.sum(-1, keepdim=True).clamp(min=1)  # [B, C]
    numbers = torch.arange(number, device=mask.device)[:, None]  # [G, 1]
    return (group.unsqueeze(1) == numbers) & mask.unsqueeze(1)


def pair_weights(listed: Tensor, scale: float) -> Tensor:
    """The probability of each pair (i, j), i ranked before j, sum 1 or 0; bool [B, K] -> float64 [B, K, K]."""
    weights = position_weights(listed, scale)  # [B, K]
    pairs = (weights.unsqueeze(2) * weights.unsqueeze(1)).triu(1)  # [B, K, K]
    total = pairs.sum((1, 2), keepdim=True)  # [B, 1, 1]
    return pairs / total.masked_fill(total == 0, 1)


METHOD = Method(unkd, lists=True, without_target=True, popularity=True)
