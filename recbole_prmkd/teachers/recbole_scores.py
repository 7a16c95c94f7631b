"""How a model of RecBole scores as a teacher: in canonical ids, as logits, by vectors where its scores are products."""

from collections.abc import Iterator
from logging import getLogger
from typing import TYPE_CHECKING, Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.students.traits import traits_of
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.products import bias_of, first_product

if TYPE_CHECKING:
    from recbole_prmkd.teachers.data import TeacherData

SCORES = 1 << 24  # scored at a time
_PAIRS = 1 << 16  # scored at a time, of models that score pairs
_SLOW = 20_000_000  # pairs


class RecBoleScores(Teacher):
    """The scores of `host`, a model of RecBole; `host_user`, `host_item`: its ids of our users and items.

    A history's "vector" is the user's or history's vector, with a 1 for the items' bias, or its scores of all items; 0
    where the model knows nothing of the user or of the history.
    """

    item_text = "nothing"
    reads_examples = True
    scores_all_items = True  # unless its scores prove to be products
    cosine = False
    side_information = ()
    config: Config
    data: "TeacherData"
    own: dict[str, Any]
    host: Any
    host_config: Config
    host_data: Dataset
    host_user: Tensor
    host_item: Tensor
    known_users: Tensor
    known: Tensor
    to_logits: Any
    tau: Tensor
    _form: tuple[bool, Tensor | None] | None

    @property
    def in_pairs(self) -> bool:
        """Whether the model scores pairs alone."""
        if traits_of(type(self.host))[0].in_pairs or self.host_config["MODEL_TYPE"] == ModelType.CONTEXT:
            return True
        return type(self.host).full_sort_predict.__qualname__.startswith("AbstractRecommender.")

    @torch.no_grad()
    def settle(self) -> None:
        """Find out whether its scores are products of two vectors and a bias; `scores_all_items` says so then."""
        if self._form is not None:
            return
        self._form = (False, None)
        if self.to_logits is None and not self.in_pairs:
            examples = self.data.fit if len(self.data.fit) else self.data.train
            index = torch.linspace(0, len(examples) - 1, min(8, len(examples))).long()
            self._form = bias_of(self.host, self._interaction(examples.select(index)), self.host_data.item_num)
        self.scores_all_items = not self._form[0]

    def covered_items(self) -> Tensor:
        """Items that were in training, [n_items]."""
        return self.known.cpu()

    @torch.no_grad()
    def encode_items(self) -> Tensor:
        """Item vectors with their bias, [n_items, D], 0 where not covered; or which items are covered, [n_items, 1]."""
        self.settle()
        assert self._form is not None
        if self.scores_all_items:
            return self.known[:, None].float()
        examples = self.data.fit if len(self.data.fit) else self.data.train
        _, table = first_product(
            self.host, self._interaction(examples.select(torch.arange(1))), self.host_data.item_num
        )
        columns = [table] if self._form[1] is None else [table, self._form[1][:, None]]
        return torch.cat(columns, dim=1)[self.host_item].float() * self.known[:, None]

    @torch.no_grad()
    def encode_batch(self, interaction: Interaction, items: Tensor) -> Tensor:
        """The batch's vectors [B, D], or its scores of all items [B, n_items]; 0 where not covered."""
        self.settle()
        assert self._form is not None
        covered = self.known_users[interaction[self.USER_ID]]  # [B]
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            covered = interaction[self.ITEM_SEQ_LEN] > 0
        batch = self._host_batch(interaction)
        if self.scores_all_items:
            return self._scored(batch).masked_fill(~covered[:, None], 0)
        users, _ = first_product(self.host, batch, self.host_data.item_num)
        users = users.reshape(len(batch), -1).float()
        if self._form[1] is not None:
            users = torch.cat([users, users.new_ones(len(users), 1)], dim=1)
        return users.masked_fill(~covered[:, None], 0)

    def scores(self, histories: Tensor, items: Tensor) -> Tensor:
        """Logits, [B, n_items]; an item that is not covered comes after all others."""
        raw = histories if self.scores_all_items else histories @ items.T
        lowest = raw[:, self.known].amin(1, keepdim=True)
        return torch.where(self.known, raw, lowest)

    def predict(self, interaction: Interaction) -> Tensor:
        """The score of the example's own item, [B]."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None]).squeeze(1)

    @torch.no_grad()
    def training_scores(self, data: "TeacherData") -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers [B] of training examples and their scores [B, n_items]; NaN where not covered.

        A model that is not sequential scores each user once.
        """
        index = torch.nonzero(self._covers(data.train)).squeeze(1)
        index = index[torch.argsort(data.train.users[index], stable=True)]
        sequential = self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        distinct = len(index) if sequential else len(torch.unique(data.train.users[index]))
        if self.in_pairs and (pairs := distinct * (self.n_items - 1)) > _SLOW:
            getLogger().warning(
                f"{self.config['teacher']} scores pairs alone, so {pairs / 1e6:.0f} million pairs of "
                f"{'example' if sequential else 'user'} and item are scored now: a model with vectors is faster."
            )
        unknown = ~self.known.to(self.tau.device)
        for part in index.split(max(1, SCORES // self.n_items)):
            users, row = torch.unique_consecutive(data.train.users[part], return_inverse=True)
            first = torch.searchsorted(row, torch.arange(len(users)))
            asked = part if sequential else part[first]
            scores = torch.cat([self._all_scores(each) for each in self._batches(data.train.select(asked))])
            scores = scores.masked_fill(unknown, torch.nan)
            yield part, scores if sequential else scores[row.to(scores.device)]

    def _covers(self, examples: Examples) -> Tensor:
        """Which examples it can score, [N]."""
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            return examples.lengths > 0
        return self.known_users.cpu()[examples.users]

    def _batches(self, examples: Examples) -> Iterator[Examples]:
        size = max(1, min(self.config["eval_batch_size"], SCORES // self.n_items))
        for index in torch.arange(len(examples)).split(size):
            yield examples.select(index)

    def _all_scores(self, examples: Examples) -> Tensor:
        """Logits of canonical items, [B, n_items]."""
        return self._scored(self._interaction(examples))

    @torch.no_grad()
    def _scored(self, batch: Interaction) -> Tensor:
        """The same of a batch in the model's ids."""
        scores = self._pairs(batch) if self.in_pairs else self.host.full_sort_predict(batch).view(len(batch), -1)
        scores = scores[:, : self.host_data.item_num].float()
        return (scores if self.to_logits is None else self.to_logits(scores))[:, self.host_item]

    def _pairs(self, batch: Interaction) -> Tensor:
        """One prediction for each example of the batch and each item, [B, items of the model]."""
        number, width = len(batch), self.host_data.item_num
        predict = self.host.forward if self.host_config["MODEL_TYPE"] == ModelType.CONTEXT else self.host.predict
        scores = []
        for index in torch.arange(number * width, device=self.tau.device).split(_PAIRS):
            pairs = {name: batch[name][index // width] for name in batch.columns}
            pairs[self.host_data.iid_field] = index % width
            joined = self.host_data.join(Interaction(pairs).cpu()).to(self.tau.device)
            scores.append(predict(joined).view(-1))
        return torch.cat(scores).view(number, width)

    def _interaction(self, examples: Examples) -> Interaction:
        """These examples as a batch in the model's ids."""
        columns = {self.USER_ID: examples.users, self.ITEM_ID: examples.targets}
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            numbers, max_length = torch.arange(len(examples)), self.own["MAX_ITEM_LIST_LENGTH"]
            columns[self.ITEM_SEQ], columns[self.ITEM_SEQ_LEN] = examples.histories(numbers, max_length)
        return self._host_batch(Interaction(columns).to(self.tau.device))

    def _host_batch(self, interaction: Interaction) -> Interaction:
        """A batch of a teacher in the model's ids: canonical items, the student's users."""
        columns = {
            self.USER_ID: self.host_user[interaction[self.USER_ID]],
            self.ITEM_ID: self.host_item[interaction[self.ITEM_ID]],
        }
        if self.host_config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
            item_seq = self.host_item[interaction[self.ITEM_SEQ]]  # [B, L]
            missing = self.own["MAX_ITEM_LIST_LENGTH"] - item_seq.shape[1]  # some models read that width alone
            columns[self.ITEM_SEQ] = torch.nn.functional.pad(item_seq, (0, missing))
            columns[self.ITEM_SEQ_LEN] = interaction[self.ITEM_SEQ_LEN].clamp(min=1)  # 0: not covered
        return Interaction(columns)
