"""Content: the texts of a history's items against each item's text, without any training.

    history(u)  sum over its items j of decay ** age(j) x unit text vector of j
    score(c)    cosine of history(u) and the text vector of c

The decay is the one that ranks best on training examples, the temperature the one that makes their targets most likely;
the text vectors know nothing of either. It costs seconds, and adds to a collaborative teacher what texts alone say. Our
choice.
"""

from functools import partial

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.data.text import item_text_vectors
from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.calibration import temperature_of
from recbole_prmkd.teachers.data import TeacherData
from recbole_prmkd.teachers.unseen import ndcg_at_10, without_history

DECAYS = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
_EXAMPLES = 2000  # of the training examples, at most, that decay and temperature are chosen on
_SCORES = 1 << 27  # that are held at a time: 512 MB


class Content(Teacher):
    """Text similarity as a RecBole model that only scores."""

    version = "1.0"
    learns = False
    choice: Tensor

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        text = functional.normalize(item_text_vectors(config, dataset).float(), dim=1)
        self.plm_embedding = nn.Embedding.from_pretrained(text, freeze=True, padding_idx=0)
        self.newest = config["MAX_ITEM_LIST_LENGTH"]
        self.register_buffer("choice", torch.tensor([0.9, 0.1], dtype=torch.float64))  # decay, temperature

    @property
    def temperature(self) -> float:
        """Divides the cosine in the soft targets."""
        return float(self.choice[1])

    def encode_items(self) -> Tensor:
        """The unit text vectors, [n_items, D]."""
        return self.plm_embedding.weight

    def covered_items(self) -> Tensor:
        """Items with text, [n_items]."""
        return super().covered_items() & (self.plm_embedding.weight != 0).any(dim=1).cpu()

    def encode_histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor) -> Tensor:
        """Decayed sums of the histories' texts, [B, D]."""
        return self._histories(item_seq, item_seq_len, items, float(self.choice[0]))

    def _histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor, decay: float) -> Tensor:
        age = item_seq_len[:, None] - 1 - torch.arange(item_seq.shape[1], device=item_seq.device)  # [B, L]
        weight = torch.where(age >= 0, decay ** age.clamp(min=0), 0.0).to(items)  # [B, L]
        return torch.einsum("bl,bld->bd", weight, items[item_seq])

    def solve(self, data: TeacherData) -> None:
        """Choose decay and temperature on training examples.

        Raises:
            UserError: there is none whose target has text.
        """
        usable = torch.nonzero(self.covered_items()[data.fit.targets]).squeeze(1)
        if len(usable) == 0:
            raise UserError("Content needs training examples whose target has text: leave it out of kd_teachers.")
        number = min(len(usable), _EXAMPLES, max(1, _SCORES // self.n_items))
        examples = data.fit.select(usable[torch.linspace(0, len(usable) - 1, number).long()])
        numbers, items = torch.arange(number), self.encode_items()
        item_seq, lengths = (part.to(items.device) for part in examples.histories(numbers, self.newest))
        whole, _ = examples.histories(numbers, int(examples.lengths.max()))
        of = partial(self._scores, item_seq, lengths, items, whole, examples.targets)
        decay = max(DECAYS, key=lambda each: float(ndcg_at_10(of(each), examples.targets).mean()))
        self.choice.copy_(torch.tensor([decay, temperature_of(of(decay), examples.targets)]))

    def _scores(
        self, item_seq: Tensor, lengths: Tensor, items: Tensor, whole: Tensor, targets: Tensor, decay: float
    ) -> Tensor:
        """Scores [V, n_items] on the CPU; -inf for what is in the whole history and for items without text."""
        scores = self.scores(self._histories(item_seq, lengths, items, decay), items).cpu()
        return without_history(scores.masked_fill(~self.covered_items(), -torch.inf), whole, targets)
