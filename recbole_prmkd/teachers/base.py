"""The contract of a teacher: a RecBole sequential model whose score is, by default, a cosine of two vectors.

To add a teacher: inherit `Teacher`, write `encode_items` and `encode_histories`, add one entry to `TEACHERS` and
one file `properties/model/<Name>.yaml`. Training, evaluation, the teacher cache and distillation follow.
"""

from collections.abc import Iterator
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.checkpoints import read_checkpoint
from recbole_prmkd.teachers.contrastive import SAME_TARGET, cosines, in_batch_scores, info_nce

if TYPE_CHECKING:
    from recbole_prmkd.teachers.data import TeacherData


class Teacher(SequentialRecommender):
    """A pre-trained recommendation model: items and histories become vectors, a score is their cosine.

    Reads the side information that it needs (text, images) by external item token, through the functions of
    `recbole_prmkd.data.text`, from `config` and `dataset`; nothing comes through `load_col`.
    """

    # Of the code that makes its weights and vectors. Raise it by hand when the same input gives other ones, here or in
    # a base class: what is stored under the former version is then made anew.
    version: str = "1.0"

    input_type = InputType.POINTWISE
    # Parameter-name prefixes that stay fixed when a pre-trained checkpoint is fine-tuned.
    frozen_when_pretrained: tuple[str, ...] = ()
    # Parameter-name prefixes that a checkpoint may lack.
    checkpoint_may_lack: tuple[str, ...] = ()
    # Frozen tables made from the data set's text or images; they are not part of what training learnt.
    side_information: tuple[str, ...] = ("plm_embedding",)

    # What it reads of an item's text: sentence "vectors", "tokens", or "nothing".
    item_text: str = "vectors"
    # Whether there is anything to train.
    learns: bool = True
    # Whether its vector of an example depends on user and target, not on the history alone.
    reads_examples: bool = False
    # Whether a history's "vector" [B, n_items] is its scores of all items; then `training_scores` or `largest_scores`
    # gives what to store.
    scores_all_items: bool = False
    # Whether its score is a cosine; otherwise, where it does not score all items at once, the product of two vectors.
    cosine: bool = True

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        self._temperature = float(config["temperature"] or 1)
        self.pretraining = config["train_stage"] == "pretrain"
        self.same_target = config["same_target"] if self.pretraining else "keep"
        if self.same_target not in SAME_TARGET:
            raise UserError(f"same_target {self.same_target!r} is not legal: use one of {', '.join(SAME_TARGET)}.")
        self.loss_fct = nn.CrossEntropyLoss()

    @property
    def temperature(self) -> float:
        """Divides a score in training, and in the soft targets that a student sees."""
        return self._temperature

    @property
    def code_version(self) -> str:
        """Class and version, as the identity of a stored folder names them."""
        return f"{type(self).__name__} {self.version}"

    def encode_items(self) -> Tensor:
        """Vectors of all items by internal id, [n_items, D], with gradient; row 0 is PAD."""
        raise NotImplementedError

    def covered_items(self) -> Tensor:
        """Which items this teacher has content for, [n_items] bool; False for PAD."""
        covered = torch.ones(self.n_items, dtype=torch.bool)
        covered[0] = False
        return covered

    def cuts(self, examples: Examples) -> dict[str, int]:
        """How much of its own input it cuts: `cut_items`, and `cut_rows` of these examples; empty: nothing to cut."""
        return {}

    def encode_histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor) -> Tensor:
        """Vectors of histories, [B, D], with gradient.

        Args:
            item_seq: [B, L] internal item ids, oldest first, right-padded with 0.
            item_seq_len: [B] true lengths, at least 1.
            items: what `encode_items` gave, [n_items, D], for teachers that read a history through item vectors.
        """
        raise NotImplementedError

    def scores(self, histories: Tensor, items: Tensor) -> Tensor:
        """Score of each history with each item, here their cosine: [B, D], [C, D] -> [B, C]."""
        return cosines(histories, items)

    def depends_on(self) -> dict[str, Any]:
        """What its weights depend on beside settings, examples and side information; the base class has no such."""
        return {}

    def go_on(self, new_items: Tensor, new_users: Tensor, keep: bool) -> None:
        """Called when it has taken over its weights of an earlier run; the base class has nothing to do.

        Args:
            new_items, new_users: [N] ids that were unknown to it then.
            keep: it is not trained on.
        """

    def complete_items(self, new_items: Tensor) -> None:
        """With `keep`: make what it stores of items that are new, [N] ids; the base class stores nothing."""

    def solve(self, data: "TeacherData") -> None:
        """Fit in closed form what gradients do not train; the base class has no such thing."""

    def training_scores(self, data: "TeacherData") -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers [B] of training examples and their scores of all items [B, n_items], NaN: not covered."""
        raise NotImplementedError

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """What RecBole's trainer minimises: the loss of pre-training or of fine-tuning, by `train_stage`."""
        return self.pretrain_loss(interaction) if self.pretraining else self.finetune_loss(interaction)

    def pretrain_vectors(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Histories of a batch and their target items, [R, D] both, with gradient; for pre-training alone."""
        raise NotImplementedError

    def pretrain_loss(self, interaction: Interaction) -> Tensor:
        """Sequence-item InfoNCE over the batch; a teacher with more to it overrides this."""
        scores = in_batch_scores(*self.pretrain_vectors(interaction), self.temperature)  # [R, R]
        return info_nce(scores, interaction[self.POS_ITEM_ID], self.same_target)

    def finetune_loss(self, interaction: Interaction) -> Tensor:
        """Full-softmax cross-entropy of cosine / temperature over all items, PAD included as in UniSRec's code."""
        histories, items = self._vectors(interaction)
        return self.loss_fct(self.scores(histories, items) / self.temperature, interaction[self.POS_ITEM_ID])

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Score of every item, [B, n_items]; not divided by the temperature."""
        return self.scores(*self._vectors(interaction))

    def predict(self, interaction: Interaction) -> Tensor:
        """Cosine with the example's own item, [B]."""
        histories, items = self._vectors(interaction)
        return functional.cosine_similarity(histories, items[interaction[self.ITEM_ID]], dim=-1)

    def encode_batch(self, interaction: Interaction, items: Tensor) -> Tensor:
        """Vectors of the batch's histories, [B, D]; items: what `encode_items` gave."""
        return self.encode_histories(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN], items)

    def _vectors(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        items = self.encode_items()  # [n_items, D]
        return self.encode_batch(interaction, items), items

    def load_checkpoint(self, path: Path) -> None:
        """Start from pre-trained weights by name.

        Tensors whose rows are items (`plm_embedding`, `item_embedding`) are not taken: they belong to the data set
        that the checkpoint was made on.

        Raises:
            UserError: unreadable file, no tensor of this model in it, one of another shape, or one that only the
                file or only the model has.
        """
        rows_are_items = {*self.side_information, "item_embedding"}
        own = {name: tensor for name, tensor in self.state_dict().items() if name.split(".")[0] not in rows_are_items}
        given = self.checkpoint_tensors(path)
        if not own.keys() & given.keys():
            raise UserError(f"{path} holds no tensor of {type(self).__name__}: name another checkpoint.")
        advice = "use the settings (width, layers, text encoder) that the checkpoint was made with."
        parts = {name.split(".")[0] for name in own}
        for name in sorted(own.keys() | given.keys()):
            if name not in given and not name.startswith(self.checkpoint_may_lack):
                raise UserError(f"{path} lacks {name}, which is {tuple(own[name].shape)} in this model; {advice}")
            if name not in own and name.split(".")[0] in parts:
                raise UserError(f"{path} holds {name} of {tuple(given[name].shape)}, which this model lacks; {advice}")
            if name in own and name in given and own[name].shape != given[name].shape:
                raise UserError(
                    f"{path}: {name} has shape {tuple(given[name].shape)}, this model wants "
                    f"{tuple(own[name].shape)}; {advice}"
                )
        for name in sorted(own.keys() - given.keys()):
            getLogger().info(f"{path} lacks {name}: it is as without a checkpoint.")
        taken = {name: given[name] for name in own.keys() & given.keys()}
        self.load_state_dict(taken, strict=False)
        for name, parameter in self.named_parameters():
            if name.startswith(self.frozen_when_pretrained) and name in taken:
                parameter.requires_grad_(False)

    def checkpoint_tensors(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a checkpoint under this model's names, for teachers whose files name them otherwise."""
        return read_checkpoint(path)
