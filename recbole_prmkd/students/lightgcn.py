"""LightGCN (SIGIR'20, arXiv 2002.02126) as a torch-geometric layer on RecBole's training interactions.

Parameters, loss and scores are those of RecBole's LightGCN, so a checkpoint of the one loads in the other. It takes
less time: the graph has no direction, so its adjacency is its own transpose, and one CSR matrix serves the forward and
the backward pass.
"""

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.init import xavier_uniform_initialization
from recbole.model.loss import BPRLoss, EmbLoss
from recbole.utils import InputType
from torch import Tensor, nn


class PyGLightGCN(GeneralRecommender):
    """Users and items start from embeddings and take the mean over 0 .. `n_layers` steps along the graph's edges."""

    input_type = InputType.PAIRWISE

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        from recbole_prmkd.students.graph import InteractionGraph  # takes seconds to import

        self.n_layers, self.reg_weight, self.require_pow = (
            config[key] for key in ("n_layers", "reg_weight", "require_pow")
        )
        self.user_embedding = nn.Embedding(self.n_users, config["embedding_size"])
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"])
        self.graph = InteractionGraph(config, dataset).to(self.device)  # nothing to learn: one for all steps
        self.mf_loss, self.reg_loss = BPRLoss(), EmbLoss()
        self.apply(xavier_uniform_initialization)
        self.restore_user_e: Tensor | None = None  # what evaluation ranks by, until the next training step
        self.restore_item_e: Tensor | None = None
        self.other_parameter_name = ["restore_user_e", "restore_item_e"]  # which RecBole puts in the checkpoint

    def forward(self) -> tuple[Tensor, Tensor]:
        """Vectors of all users [n_users, D] and all items [n_items, D]."""
        step = torch.cat([self.user_embedding.weight, self.item_embedding.weight])  # [n_users + n_items, D]
        total = step
        for _ in range(self.n_layers):
            step = self.graph(step)
            total = total + step
        users, items = (total / (self.n_layers + 1)).split([self.n_users, self.n_items])
        return users, items

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BPR of each example's positive and negative item, and L2 of the embeddings that the batch names."""
        self.restore_user_e, self.restore_item_e = None, None
        user, positive, negative = (interaction[key] for key in (self.USER_ID, self.ITEM_ID, self.NEG_ITEM_ID))
        users, items = self.forward()
        of_user = users[user]  # [B, D]
        positive_score = (of_user * items[positive]).sum(dim=1)
        negative_score = (of_user * items[negative]).sum(dim=1)
        first = self.user_embedding(user), self.item_embedding(positive), self.item_embedding(negative)
        penalty = self.reg_loss(*first, require_pow=self.require_pow)
        return self.mf_loss(positive_score, negative_score) + self.reg_weight * penalty

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of each example's user and item, [B]."""
        users, items = self.forward()
        return (users[interaction[self.USER_ID]] * items[interaction[self.ITEM_ID]]).sum(dim=1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items for each example's user, [B * n_items]."""
        if self.restore_user_e is None or self.restore_item_e is None:
            self.restore_user_e, self.restore_item_e = self.forward()
        return (self.restore_user_e[interaction[self.USER_ID]] @ self.restore_item_e.T).view(-1)
