"""The encoder of Recformer: a Longformer whose embeddings also hold token types and item positions.

Names and shapes of the state dict are those of the authors' files.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.teachers.recformer_text import TOKEN_TYPES, TokenBatch

if TYPE_CHECKING:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention


class RecformerEmbeddings(nn.Module):
    """Word + position + token type + item position, normalised: section 2.2.1 of the paper."""

    position_ids: Tensor

    def __init__(self, config: "LongformerConfig", item_positions: int) -> None:
        super().__init__()
        width, pad = config.hidden_size, config.pad_token_id or 0
        self.pad_id = pad
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=pad)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, padding_idx=pad)
        self.token_type_embeddings = nn.Embedding(TOKEN_TYPES, width)
        self.item_position_embeddings = nn.Embedding(item_positions, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Not needed, but the authors' files hold it.
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings)[None])

    def forward(self, batch: TokenBatch) -> Tensor:
        """[B, T] tokens -> [B, T, D]; positions count from pad_id + 1, as in RoBERTa."""
        real = batch.attention_mask  # a masked token may show the padding token
        x = (
            self.word_embeddings(batch.input_ids)
            + self.position_embeddings(real.cumsum(1) * real + self.pad_id)
            + self.token_type_embeddings(batch.token_type_ids)
            + self.item_position_embeddings(batch.item_position_ids)
        )  # [B, T, D]
        return self.dropout(self.LayerNorm(x))


class RecformerModel(nn.Module):
    """Embeddings and a Longformer encoder; <s> alone attends, and is attended to, everywhere.

    Sequences of few windows take a path of our own through the stock encoder's layers: attention under a band mask,
    which on such lengths is the same sum by faster means, and without padding to whole windows.
    """

    # Windows up to which that path is the faster one, measured on a CPU; dropout makes it dearer in training.
    dense_up_to = 8
    dense_up_to_in_training = 4

    def __init__(self, config: "LongformerConfig", item_positions: int, window: int) -> None:
        from transformers.models.longformer.modeling_longformer import LongformerEncoder  # takes seconds

        super().__init__()
        self.window = window
        self.embeddings = RecformerEmbeddings(config, item_positions)
        self.encoder = LongformerEncoder(config)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Hidden states, [B, T, D]."""
        x = self.embeddings(batch)  # [B, T, D]
        windows = self.dense_up_to_in_training if self.training else self.dense_up_to
        if x.shape[1] <= windows * self.window:
            return self._dense(x, batch.attention_mask.bool())
        # The encoder's code: negative = padding, 0 = local, positive = global; whole windows only.
        mask = (batch.attention_mask + batch.global_attention_mask - 1).to(x.dtype) * 1e4  # [B, T]
        extra = -x.shape[1] % self.window
        return self.encoder(
            functional.pad(x, (0, 0, 0, extra)),
            attention_mask=functional.pad(mask, (0, extra), value=-1e4),
            padding_len=extra,
            return_dict=True,
        ).last_hidden_state

    def _dense(self, x: Tensor, real: Tensor) -> Tensor:
        """The encoder's layers on embedded tokens [B, T, D]; real: [B, T], False for padding."""
        position = torch.arange(x.shape[1], device=x.device)
        near = (position[:, None] - position).abs() <= self.window // 2  # [T, T]
        near[:, 0] = True  # <s> is seen by all
        seen = (near & real[:, None])[:, None]  # [B, 1, T, T]
        for layer in self.encoder.layer:
            attention = layer.attention.self
            first = _global_attention(attention, x, real)  # [B, 1, D]
            others = _local_attention(attention, x, seen)[:, 1:]
            x = layer.ff_chunk(layer.attention.output(torch.cat([first, others], dim=1), x))
        return x


def _local_attention(attention: "LongformerSelfAttention", x: Tensor, seen: Tensor) -> Tensor:
    """Attention of all tokens to those that they see: x [B, T, D], seen [B, 1, T, T] -> [B, T, D]."""
    split = (attention.num_heads, attention.head_dim)
    query, key, value = (
        part(x).unflatten(-1, split).transpose(1, 2)  # [B, heads, T, D / heads]
        for part in (attention.query, attention.key, attention.value)
    )
    dropout = attention.dropout if attention.training else 0.0
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


def _global_attention(attention: "LongformerSelfAttention", x: Tensor, real: Tensor) -> Tensor:
    """Attention of <s> to all tokens by its own projections: x [B, T, D], real [B, T] -> [B, 1, D]."""
    split = (attention.num_heads, attention.head_dim)
    # One query: projecting it back is cheaper than projecting all keys and values. The keys' bias drops out.
    query = attention.query_global(x[:, 0]).unflatten(-1, split) / attention.head_dim**0.5  # [B, heads, D / heads]
    back = torch.einsum("bhk,hkd->bhd", query, attention.key_global.weight.unflatten(0, split))  # [B, heads, D]
    scores = (back @ x.transpose(1, 2)).masked_fill(~real[:, None], -torch.inf)  # [B, heads, T]
    weights = functional.dropout(scores.softmax(dim=-1), attention.dropout, attention.training)
    mixed = weights @ x  # [B, heads, D]
    value = torch.einsum("bhd,hkd->bhk", mixed, attention.value_global.weight.unflatten(0, split))
    bias = attention.value_global.bias.unflatten(0, split) * weights.sum(-1, keepdim=True)
    return (value + bias).flatten(1)[:, None]
