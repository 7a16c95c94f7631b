"""UniM2Rec (Sun et al., 2023, arXiv 2311.01831): items are text and image, transferable between domains.

A reconstruction. Of the paper only the abstract and the start of the introduction could be read: no code,
equations, sizes or weights are public. The paper's, as far as known: item representations from text and
images in place of text alone; preferences learnt from all domains that a user visits; transfer to new target
domains; it is said to be strongest where contents are missing or noisy. All below is our choice, most of it
UniSRec's (same group), each a setting in `properties/model/UniM2Rec.yaml`:

- text and image vectors, scaled to unit length (`unit_vectors`), go through one mixture-of-experts adaptor each;
- fusion (`fusion`): a softmax gate over the modalities that the item HAS, which starts as their mean; a
  missing modality has weight zero exactly, and an item with none is one learned vector (`missing_item`);
- a causal Transformer over the fused items, cosine / 0.07, optionally an ID embedding (`train_stage`);
- fine-tuning loss: cross-entropy over all items, plus two contrastive losses over the batch's target items
  (`text_image_weight`, `modality_weight`);
- not here: the view of the target domain beside all domains, since data of one domain has no such difference.

Without images it is a text-only model with UniSRec's equations, and UniSRec's checkpoints load as its text
side (made on vectors of another length than one, they want `unit_vectors: false`).
"""

from logging import getLogger
from pathlib import Path

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional

from recbole_prmkd.data.images import item_image_vectors
from recbole_prmkd.data.text import item_text_vectors
from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.causal import CausalTeacher, FirstView
from recbole_prmkd.teachers.unisrec import MoEAdaptor

FUSIONS = ("gate", "mean", "text", "image")
_TABLES = {"text": "plm_embedding", "image": "image_embedding"}  # modality -> its frozen vectors


class UniM2Rec(CausalTeacher):
    """UniM2Rec as a RecBole model; `modalities` names those in use, in the order of axis M."""

    version = "1.1"
    side_information = tuple(_TABLES.values())
    # A UniSRec file has the text side alone; a data set may have images where the checkpoint's had none.
    checkpoint_may_lack = ("adaptors.image.", "gates.", "missing")
    present: Tensor  # [n_items, M] bool, which item has which modality; False for PAD

    def __init__(self, config: Config, dataset: Dataset) -> None:
        tables = _side_tables(config, dataset)
        super().__init__(config, dataset)
        width = config["hidden_size"]
        self.text_image_weight = float(config["text_image_weight"])
        self.modality_weight = float(config["modality_weight"])
        self.modalities = tuple(tables)
        self.missing = nn.Parameter(torch.zeros(width), requires_grad=config["missing_item"] == "learned")
        if self.missing.requires_grad:
            nn.init.normal_(self.missing, std=config["initializer_range"])
        self.adaptors = nn.ModuleDict(
            {
                name: MoEAdaptor(config["n_exps"], table.shape[1], width, config["adaptor_dropout_prob"])
                for name, table in tables.items()
            }
        )
        # Zero at first: equal weights. With one modality, or the mean, there is nothing to learn.
        gated = self.modalities if config["fusion"] == "gate" and len(tables) > 1 else ()
        self.gates = nn.ModuleDict({name: nn.Linear(width, 1) for name in gated})
        for parameter in self.gates.parameters():
            nn.init.zeros_(parameter)
        for name, table in tables.items():
            embedding = nn.Embedding.from_pretrained(table, freeze=True, padding_idx=0)
            self.add_module(_TABLES[name], embedding)
        present = torch.stack([(table != 0).any(dim=1) for table in tables.values()], dim=1)  # [n_items, M]
        self.register_buffer("present", present, persistent=False)
        self.dropout_made_quick()

    def adapted(self, items: Tensor | None = None) -> Tensor:
        """Vectors of items in each modality, [U] ids -> [U, M, D], None: all; meaningless where `present` is False."""
        tables = (self.get_parameter(f"{_TABLES[name]}.weight") for name in self.modalities)
        parts = (table if items is None else table[items] for table in tables)
        return torch.stack([adapt(x) for adapt, x in zip(self.adaptors.values(), parts, strict=True)], dim=1)

    def fuse(self, adapted: Tensor, present: Tensor) -> Tensor:
        """One vector per item from those of its modalities: [U, M, D], [U, M] bool -> [U, D]."""
        if self.gates:
            logits = torch.cat([gate(adapted[:, m]) for m, gate in enumerate(self.gates.values())], dim=1)
        else:
            logits = torch.zeros_like(adapted[:, :, 0])  # [U, M]
        weights = logits.masked_fill(~present, torch.finfo(logits.dtype).min).softmax(dim=1)
        fused = (weights.unsqueeze(-1) * adapted).sum(dim=1)  # [U, D]
        return torch.where(present.any(dim=1, keepdim=True), fused, self.missing)

    def encode_items(self) -> Tensor:
        """Fused text and image, plus the ID embedding in the transductive stage: [n_items, D]."""
        return self._with_id(self.fuse(self.adapted(), self.present))

    def batch_contents(self, items: Tensor) -> Tensor:
        """Adapted text and image of some items: [U] ids -> [U, M, D]."""
        return self.adapted(items)

    def batch_items(self, items: Tensor, contents: Tensor) -> Tensor:
        """These fused, plus the ID embedding in the transductive stage: [U, D]."""
        fused = self.fuse(contents, self.present[items])
        return fused if self.item_embedding is None else fused + self.item_embedding.weight[items]

    def noisy_items(self, items: Tensor) -> Tensor:
        """The same with one modality missing, sampled for each item, where the item has another."""
        present = self.present[items]  # [U, M]
        lost = torch.randint(len(self.modalities), (len(items),), device=items.device)
        several = present.sum(1) > 1
        present[several, lost[several]] = False
        return self.fuse(self.adapted(items), present)

    def covered_items(self) -> Tensor:
        """Items with text or image, or all items where they have an ID embedding too: [n_items]."""
        return self.present.any(dim=1).cpu() if self.item_embedding is None else super().covered_items()

    def finetune_loss(self, interaction: Interaction) -> Tensor:
        """Cross-entropy over all items, PAD included as in UniSRec, or the candidates; plus the contrastive losses."""
        if self.sampler is not None and self.training:
            return super().finetune_loss(interaction)
        adapted = self.adapted()  # [n_items, M, D]
        items = self._with_id(self.fuse(adapted, self.present))  # [n_items, D]
        histories = self.encode_batch(interaction, items)  # [R, D], one per target
        targets = interaction[self.POS_ITEM_ID]  # [R]
        loss = self.loss_fct(self.scores(histories, items) / self.temperature, targets)
        return loss + self._contrast(adapted, self.present, histories, targets)

    def contents_loss(self, view: FirstView) -> Tensor:
        """The weighted contrastive losses of a batch with sampled candidates."""
        return self._contrast(view.contents, self.present[view.ids], view.histories, view.targets)

    def content_loss(self, histories: Tensor, targets: Tensor) -> Tensor:
        """In pre-training too, the weighted contrastive losses."""
        items, number = torch.unique(targets, return_inverse=True)
        return self._contrast(self.adapted(items), self.present[items], histories, number)

    def _contrast(self, adapted: Tensor, present: Tensor, histories: Tensor, targets: Tensor) -> Tensor:
        loss = histories.new_zeros(())
        if len(self.modalities) == 1:  # nothing to align, and its own loss is the main one already
            return loss
        if self.text_image_weight:
            loss = loss + self.text_image_weight * self.text_image_loss(adapted, present, targets)
        if self.modality_weight:
            loss = loss + self.modality_weight * self.modality_loss(adapted, present, histories, targets)
        return loss

    def _with_id(self, items: Tensor) -> Tensor:
        return items if self.item_embedding is None else items + self.item_embedding.weight

    def text_image_loss(self, adapted: Tensor, present: Tensor, targets: Tensor) -> Tensor:
        """InfoNCE between text and image, both ways, over the distinct targets that have both; else 0.

        Args:
            adapted: [U, M, D].
            present: [U, M] bool.
            targets: [R] positions in them.
        """
        items = torch.unique(targets)
        items = items[present[items].all(dim=1)]  # [U]
        if len(items) == 0:
            return adapted.new_zeros(())
        text, image = adapted[items].unbind(dim=1)  # [U, D]
        scores = self.scores(text, image) / self.temperature  # [U, U]
        own = torch.arange(len(items), device=items.device)
        return (functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)) / 2

    def modality_loss(self, adapted: Tensor, present: Tensor, histories: Tensor, targets: Tensor) -> Tensor:
        """InfoNCE of each history with its target's text, and with its image, over the distinct targets.

        A modality that the target lacks is left out, for that example as well as among the candidates.

        Args:
            adapted: [U, M, D].
            present: [U, M] bool.
            histories: [R, D].
            targets: [R] positions in `adapted`.
        Returns:
            the mean over modalities.
        """
        losses = []
        for m in range(len(self.modalities)):
            having = present[targets, m]  # [R]
            if having.any():
                items, own = torch.unique(targets[having], return_inverse=True)  # [U], [R']
                scores = self.scores(histories[having], adapted[items, m]) / self.temperature  # [R', U]
                losses.append(functional.cross_entropy(scores, own))
        return torch.stack(losses).mean() if losses else adapted.new_zeros(())

    def checkpoint_tensors(self, path: Path) -> dict[str, Tensor]:
        """Tensors of a UniM2Rec or UniSRec checkpoint, without those of modalities that are not in use here."""
        tensors = {
            name.replace("moe_adaptor.", "adaptors.text.", 1): tensor
            for name, tensor in super().checkpoint_tensors(path).items()
        }
        unused = tuple(f"{part}.{name}." for part in ("adaptors", "gates") for name in _TABLES.keys() - self.modalities)
        if not self.gates:
            unused += ("gates.",)
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(unused)}


def _side_tables(config: Config, dataset: Dataset) -> dict[str, Tensor]:
    """Modality -> its vectors [n_items, D_m], zero where an item lacks it; those that `fusion` uses.

    With `gate` and `mean` images are left out where the data has none.

    Raises:
        UserError: unknown setting, or fusion of images alone without any.
    """
    for key, legal in (("fusion", FUSIONS), ("missing_item", ("learned", "zero"))):
        if config[key] not in legal:
            raise UserError(f"UniM2Rec: {key} = {config[key]!r} is not legal: use one of {', '.join(legal)}.")
    fusion = config["fusion"]
    tables = {}
    if fusion != "image":
        tables["text"] = item_text_vectors(config, dataset)
    if fusion != "text":
        image, present = item_image_vectors(config, dataset)
        if present.any():
            tables["image"] = torch.where(present.unsqueeze(1), image, 0.0)
        elif fusion == "image":
            raise UserError("UniM2Rec: fusion = 'image' needs images: name them with --kd_item_images.")
        else:
            getLogger().info("UniM2Rec: no item has an image, so it is a text-only model.")
    if config["unit_vectors"]:
        tables = {name: functional.normalize(table, dim=1) for name, table in tables.items()}
    return tables
