"""The positive training examples of a batch, whatever the student's loader puts into it.

RecBole's batches are (user, item) rows with labels, pairs or several sampled negatives, and for auto-encoders whole
users. All reduce to positions in the batch and the numbers of the training examples that stand there. Both are on the
CPU, where the training examples and their candidates are looked up: one wait for the device in a step.
"""

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_prmkd.data.examples import EXAMPLE, Examples


def positive_examples(interaction: Interaction, label: str) -> tuple[Tensor, Tensor]:
    """Positions of a batch's positives and their training examples, each example once: [B] and [B], on the CPU.

    label: the field that is 1 for a positive, where the batch has it.
    """
    examples = interaction[EXAMPLE].cpu()
    positions = torch.arange(len(examples))
    if label in interaction:
        positions = positions[interaction[label].cpu() > 0]
    # Several sampled negatives repeat a positive: keep its first position.
    order = torch.argsort(examples[positions], stable=True)
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = examples[positions[order[1:]]] != examples[positions[order[:-1]]]
    positions = positions[order[first]].sort().values
    return positions, examples[positions]


class UserExamples:
    """One training example of each user of a batch, for students that are trained on whole users. Our choice.

    An auto-encoder's scores depend on the user alone, while a teacher scores one example (history, target). So each
    time a user comes, one of the user's examples that have a history is sampled for the teachers.
    """

    def __init__(self, train: Examples) -> None:
        usable = torch.nonzero(train.lengths > 0).squeeze(1)
        self._examples = usable[torch.argsort(train.users[usable], stable=True)]  # by user
        users = train.users[self._examples]
        self._first = torch.searchsorted(users, torch.arange(int(train.users.max()) + 2))

    def sample(self, users: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions of the users [B] that have an example, and an example of each: [B'] both, on the CPU."""
        last = len(self._first) - 2  # the greatest user of the training examples
        users = users.cpu()
        user = users.clamp(max=last)
        first, number = self._first[user], (self._first[user + 1] - self._first[user]) * (users <= last)
        positions = torch.nonzero(number > 0).squeeze(1)
        share = torch.rand(len(user), generator=generator, dtype=torch.float64)
        examples = self._examples[(first + (share * number).long())[positions]]
        return positions, examples
