"""Scores of all items for users of the data set, or for a history alone, from any RecBole model.

Three kinds of model are asked in three ways:

- sequential: from the newest items of the whole known history
- auto-encoders: from the whole known history in the place of the user's training items
- all others: from the user as it was trained; the known history only says what is left out

A model serves histories of users that it never saw if its scores need no user: that is tried, not listed.
"""

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AutoEncoderMixin
from recbole.utils import ModelType
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.serving.histories import Histories, histories_of
from recbole_prmkd.serving.loaded_model import LoadedModel
from recbole_prmkd.students.windows import replaced

_NUMBERS = 1 << 24  # scores that are held at a time, about 64 MB


class Scorer:
    """Scores [B, n_items] of a loaded model.

    Args:
        known: whether the users are those of the data set; else only their histories are used.
    Raises:
        UserError: a model that cannot score a history of a user that it never saw.
    """

    def __init__(self, loaded: LoadedModel, histories: Histories, known: bool) -> None:
        self.model, self.config, self.dataset = loaded.model, loaded.config, loaded.dataset
        self.histories, self.known = histories, known
        self.item_tokens = loaded.item_tokens
        self.n_items = self.dataset.item_num
        self.sequential = self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.by_rows = isinstance(self.model, AutoEncoderMixin)
        self.device = self.config["device"]
        self._in_pairs = False
        if not known:
            self._check_serves_histories()

    @property
    def batch(self) -> int:
        """Users that are scored at a time, so that memory depends on neither users nor items."""
        return max(1, min(1024, _NUMBERS // self.n_items))

    @torch.no_grad()
    def scores(self, users: np.ndarray) -> Tensor:
        """Scores of all items, [B, n_items]; padding is at minus infinity.

        users: [B] internal ids, or numbers of the histories.
        Raises:
            UserError: the model reads a column that a recommendation does not have.
        """
        try:
            scores = self._scores(self.interaction(users), users)
        except KeyError as error:
            raise UserError(
                f"{type(self.model).__name__} reads the column {error.args[0]!r} of interactions, which a "
                "recommendation does not have: train it with --kd_protocol=ranking, or without that column."
            ) from error
        scores = scores.view(len(users), -1)[:, : self.n_items]
        if scores.is_inference() or not scores.is_contiguous():
            scores = scores.clone()
        scores[:, 0] = -torch.inf
        return scores

    def interaction(self, users: np.ndarray) -> Interaction:
        """What the model reads of these users, on its device."""
        columns: dict[str, Tensor] = {}
        if self.known:
            columns[self.config["USER_ID_FIELD"]] = torch.from_numpy(users.astype(np.int64))
        if self.sequential:
            most = self.config["MAX_ITEM_LIST_LENGTH"]
            items, length = self.histories.newest(users, most)
            wide = torch.nn.functional.pad(items, (0, most - items.shape[1]))  # as RecBole's own batches
            columns[self.config["ITEM_ID_FIELD"] + self.config["LIST_SUFFIX"]] = wide
            columns[self.config["ITEM_LIST_LENGTH_FIELD"]] = length
            if hasattr(self.dataset, "neg_item_list_field"):  # DIEN's loss reads it, its scores do not
                columns[self.dataset.neg_item_list_field] = torch.zeros_like(wide)
        batch = Interaction(columns)
        if self.known and self.dataset.user_feat is not None:
            batch = self.dataset.join(batch)
        return batch.to(self.device)

    def _scores(self, batch: Interaction, users: np.ndarray) -> Tensor:
        if self.by_rows:
            return self._of_rows(batch, users)
        if not self._in_pairs:
            try:
                return self.model.full_sort_predict(batch)
            except NotImplementedError:
                self._in_pairs = True
        return self._pairs(batch, len(users))

    def _of_rows(self, batch: Interaction, users: np.ndarray) -> Tensor:
        """The scores of an auto-encoder, which reads these histories where it would read the user's training items."""
        row, item = self.histories.pairs(users)

        def get_rating_matrix(user: Tensor) -> Tensor:
            matrix = torch.zeros(len(user), self.n_items, device=self.device)
            matrix[row.to(self.device), item.to(self.device)] = 1.0  # as RecBole: no value for repeated items
            return matrix

        if not self.known:
            batch = Interaction({self.config["USER_ID_FIELD"]: torch.arange(len(users), device=self.device)})
        with replaced(self.model, {"get_rating_matrix": get_rating_matrix}):
            return self.model.full_sort_predict(batch)

    def _pairs(self, batch: Interaction, number: int) -> Tensor:
        """One prediction for each pair of user and item, as RecBole ranks such models."""
        items = self.dataset.get_item_feature().to(self.device)
        chunk = max(1, self.config["eval_batch_size"] // self.n_items)
        parts = []
        for place in torch.arange(number, device=self.device).split(chunk):
            pairs = batch[place.cpu()] if self.device.type == "cpu" else batch[place]
            pairs = pairs.repeat_interleave(self.n_items)
            pairs.update(items.repeat(len(place)))
            parts.append(self.model.predict(pairs).view(len(place), self.n_items))
        return torch.cat(parts)

    def _check_serves_histories(self) -> None:
        """Try the same history twice, as two users."""
        serves = self.sequential or self.by_rows
        if serves and self.n_items > 1:
            own, self.histories = self.histories, histories_of([[1], [1]])
            try:
                scores = self.scores(np.arange(2))[:, 1:]
                serves = bool(torch.allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5))
            except (UserError, AttributeError):  # it asks for the user, or for the user's features
                serves = False
            finally:
                self.histories = own
        if not serves:
            raise UserError(
                f"{type(self.model).__name__} scores users that it was trained on, and no history of another user: "
                "train a sequential student that reads the history alone (SASRec, GRU4Rec, BERT4Rec), or an "
                "auto-encoder (MultiVAE, MultiDAE)."
            )


def ids_by_token(tokens: list[str]) -> dict[str, int]:
    """Internal ids by token; padding has none."""
    return {token: number for number, token in enumerate(tokens) if number}
