"""Ranking without padding gives a causal student's own scores, in the batch's order."""

import pytest
import torch
from recbole.utils import get_model

from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students.windows import without_padding
from recbole_prmkd.training import ranking


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_scores_equal_those_of_padded_histories(model, cpu_settings):
    config = load_config(model, "tiny", config_dict=cpu_settings(kd="mean"))
    split = load_split(config)
    net = get_model(model)(config, split.train_data._dataset).eval()
    widths = []
    forward = net.forward
    net.forward = lambda item_seq, *rest: widths.append(item_seq.shape[1]) or forward(item_seq, *rest)
    batch = next(iter(split.train_data)).repeat(4)  # enough for several parts of similar length
    assert batch["item_length"].unique().numel() > 1
    with torch.no_grad():
        expected = net.full_sort_predict(batch).view(len(batch), -1)
        with without_padding(net, config):
            scores = net.full_sort_predict(batch)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
    assert widths[0] == batch["item_id_list"].shape[1] == config["MAX_ITEM_LIST_LENGTH"]
    assert widths[1] < widths[-1] <= widths[0] and "full_sort_predict" not in vars(net)


@pytest.mark.parametrize(
    ("model", "shared", "cut"), [("SASRec", None, True), ("SASRec", False, False), ("BERT4Rec", True, False)]
)
def test_the_final_ranking_is_cut_where_training_was_on_windows(model, shared, cut, cpu_settings):
    config = load_config(model, "tiny", config_dict=cpu_settings(kd="mean", kd_shared_prefixes=shared))
    split = load_split(config)
    net = get_model(model)(config, split.train_data._dataset)
    with ranking(config, split, net):
        assert ("full_sort_predict" in vars(net)) is cut
    assert "full_sort_predict" not in vars(net)
