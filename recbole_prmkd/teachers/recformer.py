"""Recformer (Li et al., KDD 2023, arXiv 2305.13731): items and histories are read as text by one Longformer.

An item is its attributes as key-value tokens, a history the tokens of its items, newest first; the state of <s> is
the vector, for items and histories alike (`recformer_text` makes the tokens). Written from the paper; names and
shapes of the state dict are those of the authors' files, so these load by name. Our choices:

- it starts from any BERT-type encoder, by default a MiniLM that a CPU can train; as the authors do with Longformer,
  one row of token types serves all four at first; item positions start at zero (theirs: random), so that a converted
  encoder gives at first what it gave before;
- such an encoder was trained to be read by the mean of its states, so that is its pooling (`pooler_type`);
- word embeddings stay fixed by default (the authors: in pre-training);
- in pre-training tokens are masked before padding (`mlm`);
- histories are short by default: the paper's sizes stand in `properties/model/Recformer.yaml`.
"""

import time
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from recbole_prmkd.data.encoder import encoder_digest, encoder_folder
from recbole_prmkd.data.examples import Examples
from recbole_prmkd.data.split import by_domain
from recbole_prmkd.data.text import item_texts
from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.bucketing import by_length
from recbole_prmkd.teachers.checkpoints import read_encoder, recformer_weights
from recbole_prmkd.teachers.contrastive import in_batch_scores, info_nce
from recbole_prmkd.teachers.longformer import RecformerModel
from recbole_prmkd.teachers.mlm import Masked, MLMHead, WordMasking
from recbole_prmkd.teachers.recformer_text import ItemTokens, TokenBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")


class PretrainParts(NamedTuple):
    """The loss of pre-training and its parts; those of the language model are 0 where there is none.

    scores: [R, R] cosine / temperature of histories with targets. contrastive: their InfoNCE.
    """

    total: Tensor
    scores: Tensor
    contrastive: Tensor
    mlm_histories: Tensor
    mlm_items: Tensor


class Recformer(Teacher):
    """Recformer as a RecBole model; items are scored against a stored table, as in two-stage fine-tuning.

    `RecformerTrainer` encodes the table anew before each epoch of the first stage and leaves it alone in the second.
    The table is part of the state dict, since in the second stage it is older than the encoder. In pre-training it
    plays no part; there is a masked language model instead, unless `mlm_weight` is 0.
    """

    version = "1.0"
    item_text = "tokens"
    side_information = ("item_tokens", "encoder_hash")
    # DeepSpeed leaves frozen word embeddings out, a plain Longformer has no item positions, a fine-tuned file no head.
    checkpoint_may_lack = (
        "longformer.embeddings.word_embeddings.",
        "longformer.embeddings.item_position_embeddings.",
        "longformer.embeddings.position_ids",
        "lm_head.",
    )

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
        self._train_only(int(config["train_layers"]))
        self.pooler_type = _pooler_type(config["pooler_type"], kind)
        self.batch_tokens = int(config["encode_batch_tokens"])
        self.negatives = int(config["negatives"])
        self.tokens_per_second = 0.0  # when the items were encoded last
        tokenizer = _tokenizer(folder, encoder.vocab_size)
        texts = [text for domain, tokens in by_domain(config, dataset) for text in item_texts(domain, tokens)]
        self.item_tokens = ItemTokens(
            tokenizer,
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
        self.lm_head: MLMHead | None = None
        self.mlm_weight = float(config["mlm_weight"]) if self.pretraining else 0.0
        if self.mlm_weight:
            self.lm_head = MLMHead(self.longformer.embeddings.word_embeddings.weight, encoder.layer_norm_eps)
            self.word_masking = WordMasking(tokenizer, config["mlm_probability"])

    def _train_only(self, layers: int) -> None:
        """Fix all but the top layers of the encoder; 0 fixes nothing."""
        number = len(self.longformer.encoder.layer)
        if not 0 <= layers <= number:
            raise UserError(f"train_layers {layers} is out of range: the encoder has {number} layers, 0 means all.")
        if layers:
            self.longformer.requires_grad_(False)
            self.longformer.encoder.layer[number - layers :].requires_grad_(True)

    def covered_items(self) -> Tensor:
        """Items with text, [n_items]."""
        return self.item_tokens.covered().cpu()

    def cuts(self, examples: Examples) -> dict[str, int]:
        """Items of which attributes were cut or left out, and histories of more than max_token_num tokens."""
        cut = torch.zeros((), dtype=torch.int64)
        for index in torch.arange(len(examples)).split(1 << 16):
            histories = examples.histories(index, self.max_seq_length)
            cut += (
                self.item_tokens.too_long(*(part.to(self.item_tokens.start.device) for part in histories)).sum().cpu()
            )
        return {"cut_items": self.item_tokens.cut_items, "cut_rows": int(cut)}

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

    @torch.no_grad()
    def go_on(self, new_items: Tensor, new_users: Tensor, keep: bool) -> None:
        """Training makes the table anew; without it known items keep their vectors of the earlier run."""
        if not keep:
            nn.init.zeros_(self.item_embedding.weight)

    @torch.no_grad()
    def complete_items(self, new_items: Tensor) -> None:
        """Encode these items alone, without dropout."""
        self.eval()
        if len(new_items):
            items = new_items.to(self.item_embedding.weight.device)[:, None]
            self.item_embedding.weight[new_items] = self._encode(items, torch.ones_like(items[:, 0]))

    def encode_histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor) -> Tensor:
        """The vector of each history's text, [B, D]; the item vectors are not used."""
        if torch.is_grad_enabled():
            return self._pooled(self.item_tokens.batch(item_seq, item_seq_len))
        return self._encode(item_seq, item_seq_len)

    def finetune_loss(self, interaction: Interaction) -> Tensor:
        """Cross-entropy of cosine / temperature over all items, or over the target and `negatives` sampled ones.

        PAD is no candidate, unlike in UniSRec. As in the authors' code the sample may hold the target again.
        """
        histories, items = self._vectors(interaction)
        targets = interaction[self.POS_ITEM_ID]  # [B]
        if not self.negatives:
            scores = self.scores(histories, items[1:]) / self.temperature  # [B, n_items - 1]
            return self.loss_fct(scores, targets - 1)
        sampled = torch.randint(1, self.n_items, (len(targets), self.negatives), device=targets.device)
        return self.sampled_loss(histories, items[torch.cat([targets[:, None], sampled], dim=1)])

    def sampled_loss(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """Cross-entropy over each example's own candidates, the first being its target: [B, D], [B, C, D] -> []."""
        scores = functional.cosine_similarity(histories[:, None], candidates, dim=-1) / self.temperature  # [B, C]
        return self.loss_fct(scores, torch.zeros_like(scores[:, 0], dtype=torch.long))

    def pretrain_vectors(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Histories and their targets, read as sequences of one item: [R, D] both."""
        histories, items = self._pretrain_tokens(interaction)
        return self._pooled(histories), self._pooled(items)

    def pretrain_loss(self, interaction: Interaction) -> Tensor:
        """InfoNCE + mlm_weight x language model of histories + mlm_weight x that of targets (section 2.3.1).

        Masks are sampled anew for each batch.
        """
        histories, items = self._pretrain_tokens(interaction)
        masked = self._masked(histories), self._masked(items)
        return self.pretrain_parts(histories, items, interaction[self.POS_ITEM_ID], *masked).total

    def pretrain_parts(
        self,
        histories: TokenBatch,
        items: TokenBatch,
        targets: Tensor,
        masked_histories: Masked | None,
        masked_items: Masked | None,
    ) -> PretrainParts:
        """The loss for R histories and their target items, [R] ids; masked: None leaves the language model out."""
        scores = in_batch_scores(self._pooled(histories), self._pooled(items), self.temperature)  # [R, R]
        contrastive = info_nce(scores, targets, self.same_target)
        mlm_histories, mlm_items = self._mlm_loss(histories, masked_histories), self._mlm_loss(items, masked_items)
        total = contrastive + self.mlm_weight * (mlm_histories + mlm_items)
        return PretrainParts(total, scores, contrastive, mlm_histories, mlm_items)

    def _pretrain_tokens(self, interaction: Interaction) -> tuple[TokenBatch, TokenBatch]:
        targets = interaction[self.POS_ITEM_ID][:, None]  # [R, 1]
        return (
            self.item_tokens.batch(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]),
            self.item_tokens.batch(targets, torch.ones_like(targets[:, 0])),
        )

    def _masked(self, batch: TokenBatch) -> Masked | None:
        return None if self.lm_head is None else self.word_masking(batch)

    def _mlm_loss(self, batch: TokenBatch, masked: Masked | None) -> Tensor:
        if self.lm_head is None or masked is None:
            return torch.zeros((), device=batch.input_ids.device)
        return self.lm_head.loss(self.longformer(batch._replace(input_ids=masked.input_ids)), masked.labels)

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
        for group in by_length(lengths, self.batch_tokens):
            index = group.to(item_seq.device)
            vectors.append(self._pooled(self.item_tokens.batch(item_seq[index], item_seq_len[index])))
            order.append(index)
            if bar is not None:
                bar.update(len(index))
        return torch.cat(vectors)[torch.cat(order).argsort()]

    def load_checkpoint(self, path: Path) -> None:
        """As the parent; the item table is encoded anew when it is next wanted."""
        super().load_checkpoint(path)
        nn.init.zeros_(self.item_embedding.weight)

    def checkpoint_tensors(self, path: Path) -> dict[str, Tensor]:
        """The encoder's tensors of any of the authors' files, or of a plain Longformer, under our names.

        Those of the language model's head too, where this model has one and the file as well.
        """
        encoder, head = recformer_weights(path)
        own = self.lm_head.state_dict().keys() if self.lm_head is not None else set()
        return {
            **{f"longformer.{name}": tensor for name, tensor in encoder.items()},
            **{f"lm_head.{name}": tensor for name, tensor in head.items() if name in own},
        }


def _tokenizer(folder: Path, vocabulary: int) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer  # takes seconds to import

    # Without these files transformers 5 silently makes a tokenizer without any word.
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
