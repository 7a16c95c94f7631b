"""The sequence encoder that UniSRec and UniM2Rec share: a causal Transformer over item vectors (SASRec's).

Names of its parameters are those of the official UniSRec code, and so are the two losses of pre-training:
sequence-item and sequence-sequence contrast over the batch, whatever domains its examples come from.
"""

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.layers import TransformerEncoder
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.errors import UserError
from recbole_prmkd.students.windows import WINDOW, example_positions, least_padding
from recbole_prmkd.teachers.augment import drop_items
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.bucketing import by_length
from recbole_prmkd.teachers.contrastive import in_batch_scores, info_nce
from recbole_prmkd.teachers.data import ExamplesDataset
from recbole_prmkd.teachers.sampled import LEAST_ITEMS, SOFTMAX, QuickDropout, Sampler, sampled_cross_entropy
from recbole_prmkd.teachers.steady import by_width, padded

_POSITIONS = 1 << 13  # history positions encoded at a time, padding included
PRECISIONS = ("auto", "bfloat16", "float32")
STAGES = ("pretrain", "inductive", "transductive")


def _trains_in_bfloat16(config: Config) -> bool:
    """Whether `train_precision` says so; auto: on a CPU that has instructions for it."""
    if config["train_precision"] not in PRECISIONS:
        raise UserError(
            f"train_precision {config['train_precision']!r} is not legal: use one of {', '.join(PRECISIONS)}."
        )
    if config["train_precision"] != "auto" or torch.device(config["device"]).type != "cpu":
        return bool(config["train_precision"] == "bfloat16")
    has: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch has none: float32
    return bool(has.get("avx512_bf16") or has.get("amx_bf16") or has.get("bf16"))


class CausalTeacher(Teacher):
    """A teacher whose history vector is the Transformer's state at the last item.

    `item_embedding` is an ID embedding in the transductive stage, else None; a subclass adds it to its item vectors.
    For pre-training a subclass writes `batch_items` and `noisy_items`.
    """

    frozen_when_pretrained: tuple[str, ...] = ("position_embedding", "trm_encoder")

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        if config["train_stage"] not in STAGES:
            raise UserError(f"train_stage {config['train_stage']!r} is not legal: use one of {', '.join(STAGES)}.")
        if not config["freeze_pretrained"]:
            self.frozen_when_pretrained = ()
        if self.pretraining:
            self.seq_seq_weight = float(config["seq_seq_weight"])
            self.item_drop_share = float(config["item_drop_share"])
            self.item_drop_ratio = float(config["item_drop_ratio"])
            self.noise_ratio = float(config["noise_ratio"])
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
        self.sampler = self._sampler(config, dataset)
        self.bfloat16 = self.sampler is not None and _trains_in_bfloat16(config)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.data.normal_(std=config["initializer_range"])
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.data.zero_()

    def dropout_made_quick(self) -> None:
        """With `softmax: sampled`, a CPU's dropout from random bytes; a subclass calls it when it is complete."""
        if self.sampler is None:
            return
        for module in list(self.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Dropout):
                    setattr(module, name, QuickDropout(child.p))

    def _sampler(self, config: Config, dataset: Dataset) -> Sampler | None:
        """What chooses the candidates of fine-tuning's loss, or None: all items."""
        if config["softmax"] not in SOFTMAX:
            raise UserError(f"softmax {config['softmax']!r} is not legal: use one of {', '.join(SOFTMAX)}.")
        small = self.n_items <= LEAST_ITEMS or not isinstance(dataset, ExamplesDataset)  # a student's: see adapter.py
        if self.pretraining or config["softmax"] == "full" or (config["softmax"] == "auto" and small):
            return None
        return Sampler(dataset.inter_feat[self.ITEM_ID], self.n_items, config["negatives"])

    @torch.no_grad()
    def go_on(self, new_items: Tensor, new_users: Tensor, keep: bool) -> None:
        """Without training a new item has no ID embedding, so that its vector is its content's."""
        if keep and self.item_embedding is not None:
            self.item_embedding.weight[new_items] = 0

    def states(self, item_seq: Tensor, items: Tensor) -> Tensor:
        """The Transformer's state at every position, [B, L, D]; item_seq [B, L] numbers the rows of items [U, D].

        Sequences of similar length are encoded together; behind a sequence's last item is 0 or the state there.
        """
        length = (item_seq != 0).sum(1).clamp(min=1)  # [B]
        if self.bfloat16 and self.training:
            return self._steady_states(item_seq, length, items)
        groups = least_padding(length)
        if len(groups) == 1:
            return self._states(item_seq, items)
        parts = []
        for group in groups:
            width = int(length[group[-1]])
            part = self._states(item_seq[group, :width], items)
            parts.append(functional.pad(part, (0, 0, 0, item_seq.shape[1] - width)))
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _steady_states(self, item_seq: Tensor, length: Tensor, items: Tensor) -> Tensor:
        """The same in few shapes: sequences and widths are rounded up."""
        parts, groups = [], by_width(length)
        for group, width in groups:
            part = self._states(padded(item_seq[group, :width]), items)[: len(group)]  # [B', width, D]
            parts.append(functional.pad(part, (0, 0, 0, item_seq.shape[1] - part.shape[1])))
        return torch.cat(parts)[torch.cat([group for group, _ in groups]).argsort()]

    def _states(self, item_seq: Tensor, items: Tensor) -> Tensor:
        position = torch.arange(item_seq.shape[1], device=item_seq.device)
        x = functional.embedding(item_seq, items) + self.position_embedding(position)  # [B, L, D]
        x = self.dropout(self.LayerNorm(x))
        return self.trm_encoder(x, self.get_attention_mask(item_seq), output_all_encoded_layers=False)[-1]

    def encode_histories(self, item_seq: Tensor, item_seq_len: Tensor, items: Tensor) -> Tensor:
        """The causal Transformer's state at the last item, [B, D]."""
        return self.gather_indexes(self.states(item_seq, items), item_seq_len - 1)

    def encode_batch(self, interaction: Interaction, items: Tensor) -> Tensor:
        """As the parent; without gradient, examples of similar length are encoded together."""
        length = interaction[self.ITEM_SEQ_LEN]
        if torch.is_grad_enabled() or WINDOW in interaction:
            return super().encode_batch(interaction, items)
        item_seq, vectors, order = interaction[self.ITEM_SEQ], [], []
        for group in by_length(length.cpu(), _POSITIONS):
            index = group.to(length.device)
            max_length = max(1, int(length[index[0]]))
            states = self.encode_histories(item_seq[index, :max_length], length[index].clamp(min=1), items)
            vectors.append(states * (length[index] > 0).unsqueeze(-1))  # an empty history is not covered
            order.append(index)
        return torch.cat(vectors)[torch.cat(order).argsort()]  # [B, D]

    def batch_contents(self, items: Tensor) -> Tensor:
        """Adapted contents of some items, [U] ids -> [U, ...], with gradient."""
        raise NotImplementedError

    def batch_items(self, items: Tensor, contents: Tensor) -> Tensor:
        """Vectors of some items from their adapted contents, [U] ids -> [U, D], with gradient."""
        raise NotImplementedError

    def noisy_items(self, items: Tensor) -> Tensor:
        """The same from spoilt contents, which the second view shows at some positions: [U] ids -> [U, D]."""
        raise NotImplementedError

    def content_loss(self, histories: Tensor, targets: Tensor) -> Tensor:
        """A loss on the contents of a pre-training batch's targets, [R, D] and [R] ids; none here."""
        return histories.new_zeros(())

    def finetune_loss(self, interaction: Interaction) -> Tensor:
        """As the parent; with `softmax: sampled`, in training, over candidates, so that it encodes few items.

        In evaluation mode it is the full softmax in any case, so that it depends on no random number.
        """
        if self.sampler is None or not self.training:
            return super().finetune_loss(interaction)
        candidates, log_probability = self.sampler(interaction[self.POS_ITEM_ID])  # [C]
        with torch.autocast(candidates.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            view = FirstView(self, interaction, candidates)
            own = torch.searchsorted(candidates, interaction[self.POS_ITEM_ID])
            histories, others = view.histories, view.others
            if self.bfloat16:
                histories, others = padded(histories), padded(others)
                log_probability = padded(log_probability, torch.inf)
            scores = self.scores(histories, view.items[others])[: len(own)]  # [R, C]
            loss = sampled_cross_entropy(scores, own, log_probability, self.temperature)
            return loss + self.contents_loss(view)

    def contents_loss(self, view: "FirstView") -> Tensor:
        """A further loss on the contents of a batch with sampled candidates; none here."""
        return view.histories.new_zeros(())

    def pretrain_vectors(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Histories and their targets, [R, D] both, for batches of single examples and of windows."""
        view = FirstView(self, interaction)
        return view.histories, view.items[view.targets]

    def pretrain_loss(self, interaction: Interaction) -> Tensor:
        """Sequence-item InfoNCE + seq_seq_weight x sequence-sequence InfoNCE, as in UniSRec, + `content_loss`.

        The second view of a batch drops items from its histories, or shows spoilt contents at some of its positions.
        """
        targets = interaction[self.POS_ITEM_ID]
        view = FirstView(self, interaction)
        scores = in_batch_scores(view.histories, view.items[view.targets], self.temperature)  # [R, R]
        loss = info_nce(scores, targets, self.same_target) + self.content_loss(view.histories, targets)
        if not self.seq_seq_weight:
            return loss
        draw = torch.rand(view.item_seq.shape, device=targets.device)  # [B, L]
        if torch.rand(()) < self.item_drop_share:
            second = self.without_items(view, draw >= self.item_drop_ratio)
        else:
            second = self.with_noise(view, draw < self.noise_ratio)
        scores = in_batch_scores(view.histories, second, self.temperature)  # [R, R]
        return loss + self.seq_seq_weight * info_nce(scores, targets, self.same_target)

    def without_items(self, view: "FirstView", keep: Tensor) -> Tensor:
        """Vectors [R, D] of the histories without some items; keep: [B, L] the marks of `drop_items`."""
        if view.windows:  # an example may be its window's first item alone, so that one stays
            keep = keep.clone()
            keep[:, 1:2] = True
        dropped = drop_items(view.item_seq, view.length, keep)
        sequence, position = view.newest
        return self.states(dropped.item_seq, view.items)[sequence, dropped.position[sequence, position]]

    def with_noise(self, view: "FirstView", swap: Tensor) -> Tensor:
        """Vectors [R, D] of the histories with spoilt contents where swap [B, L] is True."""
        both = torch.cat([view.items, self.noisy_items(view.ids)])  # [2 U, D]
        swapped = view.item_seq + len(view.items) * (swap & (view.item_seq != 0))
        return self.states(swapped, both)[view.newest]


class FirstView:
    """A training batch as it is, each of its distinct items adapted once.

    ids: [U] items, PAD first (and last, where shapes are rounded up); contents: [U, ...]; items: [U, D]; item_seq
    [B, L], targets [R] and others number positions in them; length: [B]; newest: sequence and position of each
    example's newest item, [R] both; histories: [R, D]. others: further items that it encodes.
    """

    def __init__(self, model: CausalTeacher, interaction: Interaction, others: Tensor | None = None) -> None:
        item_seq, targets = interaction[model.ITEM_SEQ], interaction[model.POS_ITEM_ID]
        others = targets[:0] if others is None else others
        everything = torch.cat([item_seq.new_zeros(1), item_seq.flatten(), targets, others])
        self.ids, number = torch.unique(everything, return_inverse=True)
        if model.bfloat16:
            self.ids = padded(self.ids)
        _, item_numbers, self.targets, self.others = number.split([1, item_seq.numel(), len(targets), len(others)])
        self.item_seq = item_numbers.view_as(item_seq)
        self.length = interaction[model.ITEM_SEQ_LEN]
        self.windows = WINDOW in interaction
        self.newest = example_positions(interaction, self.length)
        self.contents = model.batch_contents(self.ids)
        self.items = model.batch_items(self.ids, self.contents)
        self.histories = model.states(self.item_seq, self.items)[self.newest]
