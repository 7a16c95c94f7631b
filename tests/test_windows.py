"""Shared prefixes: every row once, enough context, and exactly the model's own loss and scores."""

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import get_model

from recbole_prmkd.data.examples import EXAMPLE, Examples
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students import causal_check
from recbole_prmkd.students import windows as module
from recbole_prmkd.students.causal_check import why_not_shared
from recbole_prmkd.students.windows import WindowLoader, shared_prefixes, windows


@pytest.fixture
def student(cpu_settings):
    def make(model, **more):
        config = load_config(model, "tiny", config_dict=cpu_settings(kd="mean", train_batch_size=64, **more))
        split = load_split(config)
        return get_model(model)(config, split.train_data._dataset), config, split

    return make


@pytest.mark.parametrize(("max_length", "context"), [(50, 0.5), (50, 0.9), (7, 0.0), (3, 0.67), (1, 0.5)])
def test_windows_hold_each_row_with_enough_context(max_length, context):
    sizes = [1, 2, 40, 51, 52, 333]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    start = torch.cat([torch.full((size,), int(offset)) for size, offset in zip(sizes, offsets, strict=False)])
    stop = torch.cat([offset + 1 + torch.arange(size) for size, offset in zip(sizes, offsets, strict=False)])
    rows = Examples(start, start, start, stop, torch.arange(int(offsets[-1])))
    tiles = windows(rows, max_length, context)
    first, last = tiles.start[tiles.window], tiles.start[tiles.window] + tiles.offset
    assert torch.equal(last, rows.stop - 1)  # the place of the newest history item
    assert bool((first >= rows.start).all()) and int(tiles.length.max()) <= max_length
    assert bool((tiles.offset < tiles.length[tiles.window]).all())
    seen = tiles.offset + 1
    assert bool((seen >= torch.minimum(rows.lengths, torch.tensor(int(max_length * context) or 1))).all())


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "UniSRec"])
def test_loss_and_scores_equal_the_models_own(model, together, student, monkeypatch):
    # The windows are read as one, or each length for itself.
    monkeypatch.setattr(module, "_FORWARD", 10**6 if together else 0)
    monkeypatch.setattr(module, "_STEP", 0)
    net, config, split = student(model, kd_unisrec_hidden_size=16, n_exps=2)
    net.eval()
    assert why_not_shared(net, config, split.train) is None
    loader = WindowLoader(config, split.train_data._dataset, split.train)
    encoder, read = net.gru_layers if model == "GRU4Rec" else net.trm_encoder, []
    encoder.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    short = split.train.lengths <= config["MAX_ITEM_LIST_LENGTH"]
    for batch in loader:
        index = batch[EXAMPLE]
        seq, length = split.train.histories(index, config["MAX_ITEM_LIST_LENGTH"])
        own = Interaction({"item_id_list": seq, "item_length": length, "item_id": split.train.targets[index]})
        expected = net.full_sort_predict(own)
        read.clear()
        sizes = batch["item_length"].unique().tolist()
        with shared_prefixes(net):
            scores = net.full_sort_predict(batch)
            loss = net.calculate_loss(batch)
        assert set(read) == ({max(sizes)} if together else set(sizes))
        exact = short[index]
        torch.testing.assert_close(scores[exact], expected[exact], rtol=1e-4, atol=1e-5)
        if exact.all():
            torch.testing.assert_close(loss, net.calculate_loss(own), rtol=1e-4, atol=1e-5)
    assert "gather_indexes" not in vars(net) and "calculate_loss" not in vars(net)


def test_each_row_comes_once_an_epoch_and_a_pure_function_of_it(student):
    _, config, split = student("SASRec")
    loader = WindowLoader(config, split.train_data._dataset, split.train)
    first = [batch[EXAMPLE].tolist() for batch in loader]
    assert sorted(sum(first, [])) == list(range(len(split.train))) and len(first) == len(loader)
    second = [batch[EXAMPLE].tolist() for batch in loader]
    assert first != second
    loader.epoch = 0
    assert [batch[EXAMPLE].tolist() for batch in loader] == first
    loader.schedule(torch.arange(5, 50))
    assert sorted(sum((batch[EXAMPLE].tolist() for batch in loader), [])) == list(range(5, 50))


def test_windows_stay_in_their_order_without_shuffle(student):
    _, config, split = student("SASRec", shuffle=False)
    loader = WindowLoader(config, split.train_data._dataset, split.train)
    first = [batch[EXAMPLE].tolist() for batch in loader]
    assert first == [batch[EXAMPLE].tolist() for batch in loader] and sum(first, []) == list(range(len(split.train)))


@pytest.mark.parametrize("model", ["BERT4Rec", "NARM", "STAMP", "Caser"])
def test_models_that_cannot_share_are_told_apart(model, student):
    net, config, split = student(model, hidden_size=16, mask_ratio=0.2)
    reason = why_not_shared(net, config, split.train)
    assert reason and "gather_indexes" not in vars(net)


@pytest.mark.parametrize("model", ["CORE", "HRM", "NPE", "NextItNet"])
def test_a_model_with_one_vector_a_window_is_told_apart_before_places_out_of_range_are_read(model, student):
    """On a GPU such a read is no exception: it ends CUDA for the process."""
    net, config, split = student(model)
    assert why_not_shared(net, config, split.train) == "it does not accept windows (ValueError)"


def test_a_model_that_looks_ahead_is_refused(student, monkeypatch):
    net, config, split = student("SASRec")
    mask = net.get_attention_mask
    monkeypatch.setattr(net, "get_attention_mask", lambda item_seq: mask(item_seq, bidirectional=True))
    ahead = "its state at a position depends on future items"
    assert why_not_shared(net, config, split.train) == ahead
    # Users with a single example show nothing of it: others are tried, and without others nothing is shared.
    monkeypatch.setattr(causal_check, "_PROBED", 8)
    users = split.train.users
    single = torch.tensor([int(torch.nonzero((users == user) & (split.train.lengths > 0))[0]) for user in range(1, 13)])
    others = torch.nonzero(users > 12).squeeze(1)
    assert why_not_shared(net, config, split.train.select(torch.cat([single, others]))) == ahead
    assert "nothing to share" in why_not_shared(net, config, split.train.select(single))


@pytest.mark.parametrize("model", ["SASRec", "STAMP"])
def test_a_model_whose_scores_are_still_tiny_is_looked_at_closely(model, student, monkeypatch):
    net, config, split = student(model)
    for parameter in net.parameters():
        parameter.data *= 0.1
    if model == "SASRec":
        assert why_not_shared(net, config, split.train) is None
        mask = net.get_attention_mask
        monkeypatch.setattr(net, "get_attention_mask", lambda item_seq: mask(item_seq, bidirectional=True))
    assert why_not_shared(net, config, split.train) is not None
