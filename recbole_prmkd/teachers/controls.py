"""Teachers that know nothing: what distillation does without information. Controls, our choice.

- `Uniform`: every item is as likely as any other. With the loss kl this is label smoothing.
- `Noise`: a random vector for each item, and for each item another one that stands for a history which ends in it. It
  is a rule as a teacher's is, that a student can learn, and that says nothing.
"""

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.teachers.base import Teacher


class Control(Teacher):
    """A teacher that knows nothing, by two fixed tables: of items, and of histories by their last item."""

    version = "1.0"
    item_text = "nothing"
    learns = False
    side_information = ()

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        items, histories = self._tables(config)
        self.items = nn.Parameter(items, requires_grad=False)
        self.histories = nn.Parameter(histories, requires_grad=False)

    def _tables(self, config: Config) -> tuple[Tensor, Tensor]:
        """Unit vectors of items and of histories, [n_items, D] both."""
        raise NotImplementedError

    def encode_items(self) -> Tensor:
        """The items' vectors, [n_items, D]."""
        return self.items

    def encode_histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor) -> Tensor:
        """The vector of a history's last item, [B, D]."""
        last = item_seq.gather(1, (item_seq_len - 1).clamp(min=0)[:, None]).squeeze(1)  # [B]
        return self.histories[last]


class Uniform(Control):
    """A teacher to which all items are alike."""

    def _tables(self, config: Config) -> tuple[Tensor, Tensor]:
        return torch.ones(self.n_items, 1), torch.ones(self.n_items, 1)


class Noise(Control):
    """A teacher of random vectors, by the teachers' seed."""

    def _tables(self, config: Config) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(config["seed"])
        table = torch.randn(2, self.n_items, config["embedding_size"], generator=generator)
        items, histories = functional.normalize(table, dim=-1)
        return items, histories
