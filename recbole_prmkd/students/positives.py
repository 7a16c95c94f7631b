"""The positive training rows of a batch, whatever the student's loader puts into it.

RecBole's batches are (user, item) rows with labels, pairs or several sampled negatives, and for auto-encoders whole
users. All reduce to positions in the batch and the numbers of the training rows that stand there.
"""

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_prmkd.data.examples import EXAMPLE, Examples


def positive_examples(interaction: Interaction, label: str) -> tuple[Tensor, Tensor]:
    """Places of a batch's positive rows and their numbers, each training row once: [B] and [B].

    label: the field that is 1 for a positive, where the batch has it.
    """
    rows = interaction[EXAMPLE]
    positions = torch.arange(len(rows), device=rows.device)
    if label in interaction:
        positions = positions[interaction[label] > 0]
    # Several sampled negatives repeat a positive row: keep its first place.
    order = torch.argsort(rows[positions], stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = rows[positions[order[1:]]] != rows[positions[order[:-1]]]
    positions = positions[order[first]].sort().values
    return positions, rows[positions]


class UserExamples:
    """One training row of each user of a batch, for students that are trained on whole users. Our choice.

    An auto-encoder's scores depend on the user alone, while a teacher speaks of one row (history, target); so each
    time a user comes, one of the user's rows that have a history is drawn for the teachers.
    """

    def __init__(self, train: Examples) -> None:
        usable = torch.nonzero(train.lengths > 0).squeeze(1)
        self._rows = usable[torch.argsort(train.users[usable], stable=True)]  # by user
        users = train.users[self._rows]
        self._first = torch.searchsorted(users, torch.arange(int(train.users.max()) + 2))

    def draw(self, users: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Places of the users [B] that have a row, and a row of each: [B'] and [B'], on the users' device."""
        last = len(self._first) - 2  # the greatest user of the training rows
        known = users.cpu().clamp(max=last)
        first, number = self._first[known], (self._first[known + 1] - self._first[known]) * (users.cpu() <= last)
        positions = torch.nonzero(number > 0).squeeze(1)
        share = torch.rand(len(known), generator=generator, dtype=torch.float64)
        rows = self._rows[(first + (share * number).long())[positions]]
        return positions.to(users.device), rows.to(users.device)
