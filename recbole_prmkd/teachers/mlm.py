"""Masked language model of Recformer's pre-training (section 2.3 of the paper): what is masked, and the head.

Whole words are masked, 15 % of a sequence's tokens; of the masked tokens 80 % show the mask token, 10 % a random one,
10 % themselves. The authors' code samples after padding, so that padding takes part of the share and a short sequence
may have no mask. Here the share is of the real tokens, and a sequence with any token has at least one masked word.
"""

import unicodedata
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.recformer_text import TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_MASKED = -100  # label of a token that is not to be guessed
_SPACES = ("Ġ", "▁")  # how byte-level BPE and SentencePiece write a leading space


class Masked(NamedTuple):
    """A batch's tokens with some masked, and what was there; both [B, T]. labels: NOT_MASKED elsewhere."""

    input_ids: Tensor
    labels: Tensor


class MLMHead(nn.Module):
    """Hidden states to scores of the vocabulary; parameters are named as in the authors' files.

    The decoder starts from the word embeddings but is not tied to them.
    """

    def __init__(self, words: Tensor, layer_norm_eps: float) -> None:
        """words: [V, D] word embeddings."""
        super().__init__()
        vocabulary, width = words.shape
        self.dense = nn.Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.decoder = nn.Linear(width, vocabulary)
        self.bias = self.decoder.bias  # the files hold it under both names
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.decoder.weight.copy_(words)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return self.decoder(self.layer_norm(functional.gelu(self.dense(hidden))))

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over all masked tokens of a batch, 0 without any: [B, T, D], [B, T] -> []."""
        chosen = labels != NOT_MASKED  # the vocabulary is large: no scores for other tokens
        scores = self(hidden[chosen]).float()  # [masked, V]
        return functional.cross_entropy(scores, labels[chosen], reduction="sum") / max(len(scores), 1)


class WordMasking(nn.Module):
    """`mask_words` with what it needs of a tokenizer; nothing of it goes to the state dict."""

    continues_word: Tensor

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", probability: float) -> None:
        super().__init__()
        if not 0 < probability < 1:
            raise UserError(f"mlm_probability {probability!r} is not between 0 and 1; --mlm_weight=0 masks nothing.")
        if tokenizer.mask_token_id is None:
            raise UserError("The text encoder's tokenizer has no mask token: pre-train with --mlm_weight=0.")
        self.mask_id, self.probability = int(tokenizer.mask_token_id), float(probability)
        self.register_buffer("continues_word", word_continuations(tokenizer), persistent=False)

    def forward(self, batch: TokenBatch, generator: torch.Generator | None = None) -> Masked:
        """The batch with newly sampled masks, [B, T]."""
        return mask_words(batch, self.continues_word, self.mask_id, self.probability, generator)


def word_continuations(tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """Which tokens continue the word before them, [V] bool.

    WordPiece marks them by ##. In other vocabularies all do that start with neither a space nor punctuation: since
    keys and values are joined without space, a key then belongs to the last word of the value before it, and to the
    first word of its own value.
    """
    vocabulary = tokenizer.get_vocab()
    # Some vocabularies have a word of the other kind: the more frequent mark decides.
    word_piece = sum(t.startswith("##") for t in vocabulary) > sum(t.startswith(_SPACES) for t in vocabulary)
    table = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.bool)
    for token, number in vocabulary.items():
        if word_piece:
            table[number] = token.startswith("##")
        else:
            table[number] = not token.startswith(_SPACES) and not _is_punctuation(token[:1])
    return table


def mask_words(
    batch: TokenBatch,
    continues_word: Tensor,
    mask_id: int,
    probability: float,
    generator: torch.Generator | None = None,
) -> Masked:
    """Mask random whole words of each sequence, never <s> or padding.

    Words are taken in random order up to the share of tokens, the last one if at least half of it lies within.
    A word of more than twice the share is not taken (the authors: of more than it), unless all are: then the shortest
    is.

    Args:
        continues_word: [V], what `word_continuations` gave.
        mask_id: the mask token.
        probability: share of the tokens to mask.
        generator: source of all random numbers; None: torch's own.
    """
    ids = batch.input_ids
    real = (batch.attention_mask - batch.global_attention_mask).bool()  # [B, T], without <s>
    chosen = _chosen(real, _words(ids, real, continues_word), probability, generator)
    shown = torch.rand(ids.shape, generator=generator, device=ids.device)
    other = torch.randint(len(continues_word), ids.shape, generator=generator, device=ids.device)
    spoilt = torch.where(shown < 0.8, mask_id, torch.where(shown < 0.9, other, ids))
    return Masked(torch.where(chosen, spoilt, ids), torch.where(chosen, ids, NOT_MASKED))


def _words(ids: Tensor, real: Tensor, continues_word: Tensor) -> Tensor:
    """The word that each token belongs to, numbered within its sequence; anything where real is False: [B, T]."""
    starts = real & ~continues_word[ids]
    starts[:, 1:2] = real[:, 1:2]  # nothing before it to continue
    return (starts.cumsum(1) - 1).clamp(min=0)


def _chosen(real: Tensor, words: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Tokens of the sampled words, [B, T] bool."""
    size = torch.zeros_like(words).scatter_add_(1, words, real.long())  # [B, W], W = T: 0 beyond the last word
    share = probability * real.sum(1, keepdim=True)  # [B, 1]
    rank = torch.rand(size.shape, generator=generator, device=size.device)
    rank = rank + (size - 2 * share).ceil().clamp(min=0)  # too long ones come last, the shortest of them first
    order = rank.masked_fill(size == 0, torch.inf).argsort(1)
    ordered = size.gather(1, order)
    taken = ordered.cumsum(1) - ordered / 2 <= share
    taken[:, 0] = True
    return torch.zeros_like(taken).scatter_(1, order, taken).gather(1, words) & real


def _is_punctuation(character: str) -> bool:
    # Symbols such as + and $ count too where they are ASCII, as in BERT's tokenizer.
    ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum() and character != " "
    return ascii_symbol or (character != "" and unicodedata.category(character).startswith("P"))
