"""Recformer's input: items as key-value tokens, histories as the tokens of their items, newest item first.

Every item is tokenised once; a history is then cut and joined from the stored token ids by array operations. With
items A (older) and B (newer), each `title: ...`, a history A B becomes

    input         <s>  title  red  pen  title  blue  cup  <pad>
    token type      0      1    2    2      1     2    2      3     0 <s>, 1 key, 2 value, 3 padding
    item position   0      1    1    1      2     2    2     10     0 <s>, 1 the newest item, last: padding

Key and value are tokenised apart and joined without separator; nothing closes an item.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from recbole_prmkd.data.encoder import check_words_are_read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY, VALUE, PADDING = 1, 2, 3  # token types; 0 is <s>
TOKEN_TYPES = 4


class TokenBatch(NamedTuple):
    """B sequences of at most T tokens, right-padded; all [B, T] int64.

    attention_mask: 1 for tokens, 0 for padding. global_attention_mask: 1 for <s>, which sees the whole sequence.
    """

    input_ids: Tensor
    item_position_ids: Tensor
    token_type_ids: Tensor
    attention_mask: Tensor
    global_attention_mask: Tensor


class ItemTokens(nn.Module):
    """The tokens of all items in one flat array, and the way from histories to token sequences.

    Its arrays are fixed parameters, so that they move with the model and count among its side information.

    Attributes:
        ids, types: [N] token ids and token types of all items, one after the other.
        start: [n_items + 1] where each internal item id begins; PAD (id 0) has no tokens.
        cut_items: number of items of which an attribute was cut, or left out.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        texts: Sequence[dict[str, str]],
        *,
        max_attr_num: int,
        max_attr_length: int,
        max_items: int,
        max_tokens: int,
        item_positions: int,
    ) -> None:
        """Tokenise the items.

        Args:
            texts: attributes (key -> value) of the items 1, 2, ... in the order in which they are read.
            max_attr_num, max_attr_length: attributes of an item, and tokens of an attribute, its key included.
            max_items, max_tokens: budget of a history; <s> counts as a token.
            item_positions: rows of the item-position table; the last one marks padding.
        Raises:
            UserError: the tokenizer reads no word of most items.
        """
        super().__init__()
        self.max_items, self.max_tokens = max_items, max_tokens
        self.item_positions = item_positions
        self.first_id, self.pad_id = int(tokenizer.cls_token_id), int(tokenizer.pad_token_id)
        attributes = [list(text.items())[:max_attr_num] for text in texts]
        words = list(dict.fromkeys(word for text in attributes for pair in text for word in pair))
        # One token more than is kept, so that it shows what is cut.
        encoded = tokenizer(words, add_special_tokens=False, truncation=True, max_length=max_attr_length + 1)
        kept = slice(max_attr_length) if tokenizer.truncation_side == "right" else slice(-max_attr_length, None)
        tokens = {word: read[kept] for word, read in zip(words, encoded["input_ids"], strict=True)}
        length = {word: len(read) for word, read in zip(words, encoded["input_ids"], strict=True)}
        self.cut_items = sum(
            len(text) > max_attr_num or any(length[key] + length[value] > max_attr_length for key, value in part)
            for text, part in zip(texts, attributes, strict=True)
        )
        values = [[number for _, value in part for number in tokens[value]] for part in attributes]
        check_words_are_read(tokenizer, [read for read in values if read], tokenizer.name_or_path)
        ids: list[int] = []
        types: list[int] = []
        start = [0, 0]
        for text in attributes:
            for key, value in text:
                joined = [*tokens[key], *tokens[value]][:max_attr_length]
                ids += joined
                types += [KEY if i < len(tokens[key]) else VALUE for i in range(len(joined))]
            start.append(len(ids))
        self.ids, self.types, self.start = map(_fixed, (ids, types, start))

    def covered(self) -> Tensor:
        """Items that have a value in any attribute, [n_items] bool; False for PAD."""
        values = (self.types == VALUE).long().cumsum(0)
        upto = torch.cat([values.new_zeros(1), values])[self.start]  # values before each item
        return upto[1:] > upto[:-1]

    def lengths(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Tokens of each history within the budgets, <s> included: [B]."""
        _, ends = self._newest_first(item_seq, item_seq_len)
        return (ends[:, -1] + 1).clamp(max=self.max_tokens)

    def too_long(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Which histories have more tokens than the budget: [B] bool."""
        _, ends = self._newest_first(item_seq, item_seq_len)
        return ends[:, -1] + 1 > self.max_tokens

    def batch(self, item_seq: Tensor, item_seq_len: Tensor, width: int | None = None) -> TokenBatch:
        """Token sequences of histories; an empty history is <s> alone.

        Args:
            item_seq: [B, L] internal item ids, oldest first, right-padded with 0.
            item_seq_len: [B] true lengths.
            width: pad to this many tokens; None pads to the maximum of the batch.
        """
        items, ends = self._newest_first(item_seq, item_seq_len)  # [B, K] both
        total = (ends[:, -1] + 1).clamp(max=self.max_tokens)  # [B]
        width = int(total.max()) if width is None else width
        # Position 0 is the first token after <s>; the item at a position is the first that ends behind it.
        position = torch.arange(-1, width - 1, device=items.device).expand(len(items), width)  # [B, T]
        nth = torch.searchsorted(ends, position.contiguous(), right=True).clamp(max=items.shape[1] - 1)  # [B, T]
        item = items.gather(1, nth)
        # Counted from the item's end, where its tokens stop in both arrays.
        flat = self.start[item + 1] - (ends.gather(1, nth) - position)
        flat = flat.clamp(0, len(self.ids) - 1)
        inside, first = position < (total - 1)[:, None], position < 0

        def fill(of_tokens: Tensor, of_first: int, of_padding: int) -> Tensor:
            return torch.where(inside, of_tokens, of_padding).masked_fill(first, of_first)

        return TokenBatch(
            input_ids=fill(self.ids[flat], self.first_id, self.pad_id),
            item_position_ids=fill(nth + 1, 0, self.item_positions - 1),
            token_type_ids=fill(self.types[flat], 0, PADDING),
            attention_mask=inside.long(),
            global_attention_mask=first.long(),
        )

    def _newest_first(self, item_seq: Tensor, item_seq_len: Tensor) -> tuple[Tensor, Tensor]:
        """The newest items of each history and how many tokens they are up to and with each: [B, K] both."""
        back = torch.arange(min(item_seq.shape[1], self.max_items), device=item_seq.device)  # [K]
        column = item_seq_len[:, None] - 1 - back  # [B, K]
        items = item_seq.gather(1, column.clamp(min=0)).masked_fill(column < 0, 0)
        length = self.start[items + 1] - self.start[items]
        return items, length.cumsum(1)


def _fixed(numbers: list[int]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(numbers), requires_grad=False)
