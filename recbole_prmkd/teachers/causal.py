"""The sequence encoder that UniSRec and UniM2Rec share: a causal Transformer over item vectors (SASRec's).

Names of its parameters are those of the official UniSRec code.
"""

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.model.layers import TransformerEncoder
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.teachers.base import Teacher


class CausalTeacher(Teacher):
    """A teacher whose history vector is the Transformer's state at the last item.

    `item_embedding` is an ID embedding in the transductive stage, None in the inductive one; a subclass adds it to
    its item vectors.
    """

    frozen_when_pretrained: tuple[str, ...] = ("position_embedding", "trm_encoder")

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        width = config["hidden_size"]
        self.position_embedding = nn.Embedding(self.max_seq_length, width)
        self.trm_encoder = TransformerEncoder(
            n_layers=config["n_layers"],
            n_heads=config["n_heads"],
            hidden_size=width,
            inner_size=config["inner_size"],
            hidden_dropout_prob=config["hidden_dropout_prob"],
            attn_dropout_prob=config["attn_dropout_prob"],
            hidden_act=config["hidden_act"],
            layer_norm_eps=config["layer_norm_eps"],
        )
        self.LayerNorm = nn.LayerNorm(width, eps=config["layer_norm_eps"])
        self.dropout = nn.Dropout(config["hidden_dropout_prob"])
        transductive = config["train_stage"] == "transductive"
        self.item_embedding = nn.Embedding(self.n_items, width, padding_idx=0) if transductive else None
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.data.normal_(std=config["initializer_range"])
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.data.zero_()

    def encode_histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor) -> Tensor:
        """The causal Transformer's state at the last item, [B, D]."""
        position = torch.arange(item_seq.shape[1], device=item_seq.device)
        x = functional.embedding(item_seq, items) + self.position_embedding(position)  # [B, L, D]
        x = self.dropout(self.LayerNorm(x))
        hidden = self.trm_encoder(x, self.get_attention_mask(item_seq), output_all_encoded_layers=False)[-1]
        return self.gather_indexes(hidden, item_seq_len - 1)  # [B, D]
