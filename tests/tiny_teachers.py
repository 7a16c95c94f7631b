"""The package's teachers of a few numbers, with the weights and inputs of `reference.py`, in evaluation mode."""

from types import SimpleNamespace

import pytest
import reference
import torch
from recformer_parity import build_model, interaction
from transformers import BertConfig, BertModel, BertTokenizerFast

from recbole_prmkd.recbole_host.keys import teacher_settings
from recbole_prmkd.teachers import unim2rec as unim2rec_module
from recbole_prmkd.teachers import unisrec as unisrec_module
from recbole_prmkd.teachers.recformer import Recformer
from recbole_prmkd.teachers.unim2rec import UniM2Rec
from recbole_prmkd.teachers.unisrec import UniSRec

FIELDS = {
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "LIST_SUFFIX": "_list",
    "NEG_PREFIX": "neg_",
    "ITEM_LIST_LENGTH_FIELD": "item_length",
    "device": "cpu",
}
_SIZES = {
    **FIELDS,
    "hidden_size": reference.WIDTH,
    "inner_size": reference.INNER,
    "n_exps": reference.EXPERTS,
    "n_heads": reference.HEADS,
    "n_layers": reference.LAYERS,
    "MAX_ITEM_LIST_LENGTH": reference.LENGTH,
    "temperature": reference.TEMPERATURE,
}


def batch():
    """The histories and targets of UniSRec and UniM2Rec."""
    ids = [[item - 1 for item in history] for history in reference.HISTORIES]
    return interaction(ids, [target - 1 for target in reference.TARGETS])


def text_batch():
    """The histories and targets of Recformer."""
    ids = [[item - 1 for item in history] for history in reference.TEXT_HISTORIES]
    return interaction(ids, [target - 1 for target in reference.TEXT_TARGETS])


def unisrec(stage: str = "inductive") -> UniSRec:
    weights = reference.unisrec_weights()
    if stage == "inductive":
        del weights["item_embedding.weight"]
    return _causal(UniSRec, weights, train_stage=stage)


def unim2rec() -> UniM2Rec:
    contrast = {"text_image_weight": reference.TEXT_IMAGE_WEIGHT, "modality_weight": reference.MODALITY_WEIGHT}
    return _causal(UniM2Rec, reference.unim2rec_weights(), **contrast)


def _causal(kind, weights, **settings):
    text = torch.from_numpy(reference.side_table(reference.TEXT_WIDTH, reference.WITHOUT_TEXT))
    image = torch.from_numpy(reference.side_table(reference.IMAGE_WIDTH, reference.WITHOUT_IMAGE))
    with pytest.MonkeyPatch.context() as patch:
        for module in (unisrec_module, unim2rec_module):
            patch.setattr(module, "item_text_vectors", lambda config, dataset: text)
        patch.setattr(unim2rec_module, "item_image_vectors", lambda config, dataset: (image, (image != 0).any(1)))
        config = {**teacher_settings(kind.__name__, {}), **_SIZES, **settings}
        model = kind(config, SimpleNamespace(num=lambda field: reference.ITEMS))
    return _loaded(model, weights, {f"{table}.weight" for table in model.side_information})


def recformer(folder, pooling: str = "cls") -> Recformer:
    """folder: where the encoder that it starts from may be written."""
    write_encoder(folder)
    model = build_model(
        reference.TEXTS,
        folder,
        max_attr_num=2,
        max_attr_length=8,
        max_token_num=24,
        max_item_embeddings=reference.ITEM_POSITIONS,
        MAX_ITEM_LIST_LENGTH=reference.ITEM_POSITIONS - 1,
        attention_window=reference.WINDOW,
        temperature=reference.RECFORMER_TEMPERATURE,
        pooler_type=pooling,
        mlm_weight=0.0,
        train_layers=0,
        train_word_embeddings=True,
        encode_batch_tokens=16,
    )
    missing = set(model.state_dict()) - {f"longformer.{name}" for name in reference.recformer_weights()}
    return _loaded(
        model, {f"longformer.{name}": array for name, array in reference.recformer_weights().items()}, missing
    )


def write_encoder(folder):
    """An untrained BERT of the reference's sizes, and a tokenizer that knows its words."""
    (folder / "vocab.txt").write_text("\n".join(reference.VOCABULARY) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(reference.VOCABULARY),
        hidden_size=reference.TOKEN_WIDTH,
        intermediate_size=reference.TOKEN_INNER,
        num_hidden_layers=reference.LAYERS,
        num_attention_heads=reference.HEADS,
        max_position_embeddings=reference.POSITIONS,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def _loaded(model, weights, may_lack):
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
    assert set(missing) <= set(may_lack) and not unexpected
    return model.eval()
