"""Recformer (Li et al., KDD 2023, arXiv 2305.13731): items and histories are read as text by one Longformer.

An item is its attributes as key-value tokens, a history the tokens of its items, newest first; the state of <s> is
the vector, for items and histories alike (`recformer_text` makes the tokens). Written from the paper; names and
shapes of the state dict are those of the authors' files, so these load by name. Our choices:

- it starts from any BERT-type encoder, by default a MiniLM that a CPU can train; as the authors do with Longformer,
  one row of token types serves all four at first; item positions start at zero (theirs: random), so that a converted
  encoder gives at first what it gave before;
- such an encoder was trained to be read by the mean of its states, so that is its pooling (`pooler_type`);
- word embeddings stay fixed by default (the authors: in pre-training);
- histories are short by default: the paper's sizes stand in `properties/model/Recformer.yaml`.
"""

import time
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from recbole_prmkd.dataset import by_domain
from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.checkpoints import read_encoder, recformer_weights
from recbole_prmkd.teachers.recformer_text import TOKEN_TYPES, ItemTokens, TokenBatch, by_length
from recbole_prmkd.text import encoder_digest, encoder_folder, item_texts

if TYPE_CHECKING:
    from transformers import LongformerConfig, PreTrainedTokenizerBase
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
# What a checkpoint may lack: DeepSpeed leaves frozen word embeddings out, a plain Longformer has no item positions.
_MAY_LACK = {
    "longformer.embeddings.word_embeddings.weight",
    "longformer.embeddings.item_position_embeddings.weight",
}


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
        real = (batch.input_ids != self.pad_id).long()
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
        place = torch.arange(x.shape[1], device=x.device)
        near = (place[:, None] - place).abs() <= self.window // 2  # [T, T]
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


class Recformer(Teacher):
    """Recformer as a RecBole model; items are scored against a stored table, as in two-stage fine-tuning.

    `RecformerTrainer` encodes the table anew before each epoch of the first stage and leaves it alone in the second.
    The table is part of the state dict, since in the second stage it is older than the encoder.
    """

    side_information = ("item_tokens", "encoder_hash")

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        item_positions, window = int(config["max_item_embeddings"]), int(config["attention_window"])
        if self.max_seq_length >= item_positions:
            raise UserError(
                f"MAX_ITEM_LIST_LENGTH {self.max_seq_length} needs max_item_embeddings of at least "
                f"{self.max_seq_length + 1}, not {item_positions}."
            )
        if window < 2 or window % 2:
            raise UserError(f"attention_window {window} is not an even number of at least 2.")
        folder = encoder_folder(config["kd_text_encoder"])
        kind, encoder, weights = read_encoder(folder, window, config["max_token_num"], item_positions)
        self.longformer = RecformerModel(encoder, item_positions, window)
        self.longformer.load_state_dict(weights)
        self.longformer.embeddings.word_embeddings.requires_grad_(config["train_word_embeddings"])
        self.pooler_type = _pooler_type(config["pooler_type"], kind)
        self.batch_tokens = int(config["encode_batch_tokens"])
        self.negatives = int(config["negatives"])
        self.tokens_per_second = 0.0  # of the last pass over the items
        texts = [text for domain, tokens in by_domain(config, dataset) for text in item_texts(domain, tokens)]
        self.item_tokens = ItemTokens(
            _tokenizer(folder, encoder.vocab_size),
            texts,
            max_attr_num=config["max_attr_num"],
            max_attr_length=config["max_attr_length"],
            max_items=self.max_seq_length,
            max_tokens=config["max_token_num"],
            item_positions=item_positions,
        )
        digest = torch.tensor(list(bytes.fromhex(encoder_digest(folder))), dtype=torch.uint8)
        self.encoder_hash = nn.Parameter(digest, requires_grad=False)
        table = torch.zeros(self.n_items, encoder.hidden_size)
        self.item_embedding = nn.Embedding.from_pretrained(table, freeze=True)

    def known_items(self) -> Tensor:
        """Items with text, [n_items]."""
        return self.item_tokens.known().cpu()

    def encode_items(self) -> Tensor:
        """The stored table, [n_items, D], without gradient; encoded now if it never was. PAD is zero."""
        if not self.item_embedding.weight.any():
            self.refresh_items()
        return self.item_embedding.weight

    @torch.no_grad()
    def refresh_items(self) -> None:
        """Encode every item with the present weights, without dropout, into the stored table."""
        training = self.training
        self.eval()
        items = torch.arange(1, self.n_items, device=self.item_embedding.weight.device)[:, None]
        started = time.time()
        with tqdm(total=len(items), desc="Recformer items", unit="item", leave=False) as bar:
            self.item_embedding.weight[1:] = self._encode(items, torch.ones_like(items[:, 0]), bar)
        seconds = time.time() - started
        self.tokens_per_second = (len(self.item_tokens.ids) + len(items)) / seconds
        getLogger().info(
            f"Recformer encoded {len(items)} items in {seconds:.1f} s "
            f"({len(items) / seconds:.0f} items/s, {self.tokens_per_second:.0f} tokens/s)."
        )
        self.train(training)

    def encode_histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor) -> Tensor:
        """The vector of each history's text, [B, D]; the item vectors are not used."""
        if torch.is_grad_enabled():
            return self._pooled(self.item_tokens.batch(item_seq, item_seq_len))
        return self._encode(item_seq, item_seq_len)

    def finetune_loss(self, interaction: Interaction) -> Tensor:
        """Cross-entropy of cosine / temperature over all items, or over the target and `negatives` drawn ones.

        PAD is no candidate, unlike in UniSRec. As in the authors' code the draw does not leave the target out.
        """
        histories, items = self._vectors(interaction)
        targets = interaction[self.POS_ITEM_ID]  # [B]
        if not self.negatives:
            scores = self.cosine(histories, items[1:]) / self.temperature  # [B, n_items - 1]
            return self.loss_fct(scores, targets - 1)
        drawn = torch.randint(1, self.n_items, (len(targets), self.negatives), device=targets.device)
        return self.sampled_loss(histories, items[torch.cat([targets[:, None], drawn], dim=1)])

    def sampled_loss(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """Cross-entropy over each row's own candidates, the first being its target: [B, D], [B, C, D] -> []."""
        scores = functional.cosine_similarity(histories[:, None], candidates, dim=-1) / self.temperature  # [B, C]
        return self.loss_fct(scores, torch.zeros_like(scores[:, 0], dtype=torch.long))

    def _pooled(self, batch: TokenBatch) -> Tensor:
        """[B, T] tokens -> [B, D]."""
        hidden = self.longformer(batch)  # [B, T, D]
        if self.pooler_type == "cls":
            return hidden[:, 0]
        mask = batch.attention_mask[..., None].to(hidden.dtype)  # [B, T, 1]
        return (hidden * mask).sum(1) / mask.sum(1)

    def _encode(self, item_seq: Tensor, item_seq_len: Tensor, bar: "tqdm | None" = None) -> Tensor:
        """Vectors of any number of sequences, in batches of similar length: [N, L] -> [N, D]."""
        lengths = self.item_tokens.lengths(item_seq, item_seq_len).cpu()
        order, vectors = [], []
        for index in by_length(lengths, self.batch_tokens):
            rows = index.to(item_seq.device)
            vectors.append(self._pooled(self.item_tokens.batch(item_seq[rows], item_seq_len[rows])))
            order.append(rows)
            if bar is not None:
                bar.update(len(index))
        return torch.cat(vectors)[torch.cat(order).argsort()]

    def load_checkpoint(self, path: Path) -> None:
        """As the parent; the item table is encoded anew when it is next wanted."""
        super().load_checkpoint(path)
        nn.init.zeros_(self.item_embedding.weight)

    def checkpoint_tensors(self, path: Path) -> dict[str, Tensor]:
        """The encoder's tensors of any of the authors' files, or of a plain Longformer, under our names.

        Raises:
            UserError: unreadable file, or layers that only one of the two has.
        """
        tensors = {f"longformer.{name}": tensor for name, tensor in recformer_weights(path).items()}
        own = {name: tensor for name, tensor in self.state_dict().items() if name.startswith("longformer.")}
        del own["longformer.embeddings.position_ids"]  # no weight
        if not tensors.keys() & own.keys():
            return {}
        for name in sorted(own.keys() - tensors.keys()):
            if name not in _MAY_LACK:
                raise UserError(f"{path} lacks {name}, which is {tuple(own[name].shape)} in this model.")
            getLogger().info(f"{path} lacks {name}: that of the encoder stays.")
        for name in sorted(tensors.keys() - own.keys()):
            raise UserError(
                f"{path} holds {name} of shape {tuple(tensors[name].shape)}, which this model lacks: "
                "start it from the encoder that the checkpoint was made from (--kd_text_encoder)."
            )
        return tensors


def _tokenizer(folder: Path, vocabulary: int) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # takes seconds to import

    # Without these files transformers 5 makes a tokenizer that knows no word, and says nothing.
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        raise UserError(f"{folder} holds no tokenizer: copy one of {', '.join(_VOCABULARIES)} there.")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    if len(tokenizer) > vocabulary:
        raise UserError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, its encoder {vocabulary}.")
    return tokenizer


def _pooler_type(wanted: str, kind: str) -> str:
    if wanted == "auto":
        return "cls" if kind == "longformer" else "mean"
    if wanted not in {"cls", "mean"}:
        raise UserError(f"pooler_type {wanted!r} is not legal: auto, cls or mean.")
    return wanted
