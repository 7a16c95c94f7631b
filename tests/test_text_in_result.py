"""What was cut of the items' texts, and how they were pooled, stands in result.json, in reused runs too."""

import pytest
import torch
from transformers import AutoTokenizer

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.teachers.recformer_text import ItemTokens

RECFORMER = {
    "kd_recformer_max_token_num": 16,
    "kd_recformer_max_attr_length": 4,
    "kd_recformer_max_item_list_length": 4,
    "kd_recformer_attention_window": 8,
    "kd_recformer_epochs": 1,
    "kd_recformer_stage_two_epochs": 0,
    "kd_recformer_max_rows_per_epoch": 16,
}


def test_cuts_of_new_and_of_reused_vectors(settings, tiny_encoder, tmp_path, tiny_path):
    given = {"kd_teachers": ["UniSRec", "Recformer"], "kd_text_encoder": str(tiny_encoder), "epochs": 1, **RECFORMER}
    results = []
    for number in range(2):
        run = settings(kd="mean", kd_text_max_tokens=6, kd_output_dir=str(tmp_path / str(number)), **given)
        results.append(run_recbole_prmkd("BPR", "tiny", config_dict=run)["result"])
        log = next((tmp_path / str(number) / "log").rglob("*.log")).read_text()
        assert "30 texts encoded by" in log and "pooling mean, at most 6 tokens each" in log
        assert "30 of 30 item texts are longer than 6 tokens and were cut: raise --kd_text_max_tokens" in log
        assert "Recformer cuts the texts of 30 of 30 items (--kd_recformer_max_attr_length" in log
    cold, warm = results
    assert not cold["steps"]["text"]["reused"] and warm["steps"]["text"]["reused"]
    assert cold["item_text"] == warm["item_text"]
    assert cold["item_text"] == {
        "encoder": str(tiny_encoder),
        "pooling": "mean",
        "encoder_limit": 64,
        "max_tokens": 6,
        "items": 30,
        "texts": 30,
        "cut": 30,
    }
    for result in results:
        recformer = result["teachers"]["Recformer"]
        # An item is cut to 4 tokens, so that <s> and 4 items are 17 tokens.
        assert recformer["cut_items"] == 30 and 0 < recformer["cut_rows"] < result["dataset"]["train_rows"]
        assert result["teachers"]["UniSRec"]["cut_items"] is None


def test_nothing_is_said_of_texts_that_nobody_encodes(settings):
    assert run_recbole_prmkd("BPR", "tiny", config_dict=settings(epochs=1))["result"]["item_text"] is None


def item_tokens(tokenizer, texts, **changes):
    limits = {"max_attr_num": 2, "max_attr_length": 3, "max_items": 3, "max_tokens": 6, "item_positions": 11}
    return ItemTokens(tokenizer, texts, **{**limits, **changes})


@pytest.fixture
def tokenizer(minilm):
    return AutoTokenizer.from_pretrained(str(minilm))


def test_recformer_counts_items_and_histories_that_it_cuts(tokenizer):
    texts = [
        {"title": "red pen"},
        {"title": "blue cup now"},
        {"title": "cup", "brand": "x", "kind": "y"},
        {"title": "cup", "brand": "x"},
    ]
    items = item_tokens(tokenizer, texts)
    assert items.cut_items == 2  # one of four tokens, one of three attributes
    histories = torch.tensor([[1, 0, 0], [1, 2, 0], [4, 0, 0], [4, 1, 0]])
    assert items.too_long(histories, torch.tensor([1, 2, 1, 2])).tolist() == [False, True, False, True]
    assert item_tokens(tokenizer, texts, max_attr_num=3, max_attr_length=9).cut_items == 0


def test_recformer_without_a_vocabulary_is_refused(tokenizer):
    texts = [{"title": "\u1200\u1201"}, {"title": "\u1208"}, {"title": "pen"}, {"title": ""}]
    with pytest.raises(UserError, match="reads no word of 2 of 3 texts"):
        item_tokens(tokenizer, texts)
