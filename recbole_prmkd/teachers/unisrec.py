"""UniSRec (Hou et al., KDD 2022, arXiv 2206.05941): sequences of item texts, transferable between domains.

A frozen text vector of each item goes through a mixture-of-experts adaptor with parametric whitening; a causal
Transformer reads the adapted history. State-dict names and shapes are those of the official code. Two things differ, in
training only: since the adaptor runs once per item and step, an item's dropout and its gate noise are the same at all
its positions in the batch (the official code samples them anew for each position).
"""

from collections.abc import Iterable
from typing import cast

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.data.text import item_text_vectors
from recbole_prmkd.teachers.causal import CausalTeacher


class WhiteningExpert(nn.Module):
    """Parametric whitening, equation (2): W (dropout(x) - b)."""

    def __init__(self, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(width_in))
        self.lin = nn.Linear(width_in, width_out, bias=False)
        nn.init.normal_(self.lin.weight, std=0.02)

    def whitened(self, x: Tensor) -> Tensor:
        """[..., width_in] before the projection W."""
        return self.dropout(x) - self.bias


class MoEAdaptor(nn.Module):
    """Mixture of whitening experts, equations (3) and (4); the gate has noise in training."""

    def __init__(self, n_experts: int, width_in: int, width_out: int, dropout: float) -> None:
        super().__init__()
        self.experts = nn.ModuleList(WhiteningExpert(width_in, width_out, dropout) for _ in range(n_experts))
        self.w_gate = nn.Parameter(torch.zeros(width_in, n_experts))
        self.w_noise = nn.Parameter(torch.zeros(width_in, n_experts))

    def gates(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Softmax weights of the experts, [..., E]; noise: standard normal numbers of that shape."""
        logits = x @ self.w_gate  # [..., E]
        if noise is not None:
            logits = logits + noise * (functional.softplus(x @ self.w_noise) + 1e-2)
        return logits.softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width_in] -> [..., width_out]."""
        shape = (*x.shape[:-1], len(self.experts))
        gates = self.gates(x, torch.randn(shape, device=x.device, dtype=x.dtype) if self.training else None)
        # Weighted before the projections, so that these are one product and no E outputs are held.
        experts = cast(Iterable[WhiteningExpert], self.experts)
        weighted = [expert.whitened(x) * gates[..., e, None] for e, expert in enumerate(experts)]
        projections = torch.cat([expert.lin.weight for expert in experts], dim=1)  # [width_out, E width_in]
        return functional.linear(torch.cat(weighted, dim=-1), projections)


class UniSRec(CausalTeacher):
    """UniSRec as a RecBole model; `train_stage` pretrain, inductive (text alone) or transductive (text + ID)."""

    version = "1.1"
    side_information = ("plm_embedding", "noisy_plm_embedding")

    def __init__(self, config: Config, dataset: Dataset) -> None:
        text = item_text_vectors(config, dataset)  # [n_items, D_text]
        super().__init__(config, dataset)
        width, dropout = config["hidden_size"], config["adaptor_dropout_prob"]
        self.moe_adaptor = MoEAdaptor(config["n_exps"], text.shape[1], width, dropout)
        self.plm_embedding = nn.Embedding.from_pretrained(text, freeze=True, padding_idx=0)
        self.dropout_made_quick()
        if self.pretraining and self.seq_seq_weight and self.item_drop_share < 1:
            noisy = item_text_vectors(config, dataset, word_drop=config["word_drop_ratio"])
            self.noisy_plm_embedding = nn.Embedding.from_pretrained(noisy, freeze=True, padding_idx=0)

    def encode_items(self) -> Tensor:
        """Adapted text, plus the ID embedding in the transductive stage: [n_items, D]."""
        items = self.moe_adaptor(self.plm_embedding.weight)
        return items if self.item_embedding is None else items + self.item_embedding.weight

    def batch_contents(self, items: Tensor) -> Tensor:
        """Adapted text of some items, [U] ids -> [U, D]."""
        return self.moe_adaptor(self.plm_embedding(items))

    def batch_items(self, items: Tensor, contents: Tensor) -> Tensor:
        """The same, plus the ID embedding in the transductive stage."""
        return contents if self.item_embedding is None else contents + self.item_embedding.weight[items]

    def noisy_items(self, items: Tensor) -> Tensor:
        """Adapted texts with dropped words; for pre-training, where there is no ID embedding."""
        return self.moe_adaptor(self.noisy_plm_embedding(items))

    def covered_items(self) -> Tensor:
        """Items with text, or all items where they have an ID embedding too: [n_items]."""
        real = super().covered_items()
        return real & (self.plm_embedding.weight != 0).any(dim=1).cpu() if self.item_embedding is None else real
