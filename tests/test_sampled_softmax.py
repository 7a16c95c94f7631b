"""Sampled softmax of UniSRec and UniM2Rec: its estimate, its candidates, and what a fine-tuning step encodes."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.nn import functional

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import properties_dir, read_yaml
from recbole_prmkd.students.windows import OFFSET, WINDOW
from recbole_prmkd.teachers import unim2rec, unisrec
from recbole_prmkd.teachers.data import ExamplesDataset
from recbole_prmkd.teachers.sampled import LEAST_ITEMS, QuickDropout, Sampler, sampled_cross_entropy
from recbole_prmkd.teachers.steady import by_width, rounded

ITEMS, TEXT, WIDTH, LENGTH = 40, 6, 8, 5
NO_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "adaptor_dropout_prob"), 0.0)
KINDS = {"UniSRec": unisrec.UniSRec, "UniM2Rec": unim2rec.UniM2Rec}
TARGETS = torch.cat([torch.arange(1, ITEMS), torch.full((30,), 3), torch.full((8,), 5)])  # of all training examples


def batch(windows=False):
    """Six examples: histories of 1 to 3 items, target 3 twice; or the same as shared prefixes of two users."""
    target = torch.tensor([2, 3, 4, 3, 9, 7])
    if windows:
        return {
            "item_id_list": torch.tensor([[1, 2, 3], [5, 3, 9]]),
            "item_length": torch.tensor([3, 3]),
            "item_id": target,
            WINDOW: torch.tensor([0, 0, 0, 1, 1, 1]),
            OFFSET: torch.tensor([0, 1, 2, 0, 1, 2]),
        }
    histories = [[1, 0, 0], [1, 2, 0], [1, 2, 3], [5, 0, 0], [5, 3, 0], [5, 3, 9]]
    length = torch.tensor([1, 2, 3, 1, 2, 3])
    return {"item_id_list": torch.tensor(histories), "item_length": length, "item_id": target}


@pytest.fixture
def build(monkeypatch):
    """A function: a small teacher of this kind, in training, always with the same weights."""
    generator = torch.Generator().manual_seed(0)

    def make(kind="UniSRec", items=ITEMS, **more):
        text = torch.cat([torch.zeros(1, TEXT), torch.randn(items - 1, TEXT, generator=generator.manual_seed(0))])
        image = torch.randn(items, TEXT, generator=generator)
        present = torch.arange(items) % 3 > 0
        monkeypatch.setattr(unisrec, "item_text_vectors", lambda config, dataset: text)
        monkeypatch.setattr(unim2rec, "item_text_vectors", lambda config, dataset: text)
        monkeypatch.setattr(unim2rec, "item_image_vectors", lambda config, dataset: (image, present))
        config = {
            **read_yaml(properties_dir() / "model" / f"{kind}.yaml"),
            **{"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_"},
            **{"ITEM_LIST_LENGTH_FIELD": "item_length", "device": "cpu", "MAX_ITEM_LIST_LENGTH": LENGTH},
            **{"hidden_size": WIDTH, "inner_size": WIDTH, "n_exps": 2, "softmax": "sampled"},
            **{"train_precision": "float32", **NO_DROPOUT, **more},
        }
        dataset = mock.create_autospec(ExamplesDataset, instance=True)
        dataset.num, dataset.inter_feat = lambda field: items, {"item_id": TARGETS}
        torch.manual_seed(0)
        model = KINDS[kind](config, dataset)
        adaptors = [module for module in model.modules() if isinstance(module, unisrec.MoEAdaptor)]
        for adaptor in adaptors:  # the gate's noise is random in training: without it the two losses can be equal
            monkeypatch.setattr(adaptor, "gates", lambda x, noise=None, own=adaptor.gates: own(x))
        return model

    return make


def loss_and_gradients(model, interaction):
    torch.manual_seed(1)
    model.zero_grad()
    loss = model.calculate_loss(interaction)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", ["inductive", "transductive"])
@pytest.mark.parametrize("negatives", [ITEMS, 10 * ITEMS])
def test_with_all_items_it_is_the_full_softmax(kind, stage, negatives, build):
    """Loss and gradients, with fewer items than negatives too."""
    full = loss_and_gradients(build(kind, softmax="full", train_stage=stage), batch())
    sampled = loss_and_gradients(build(kind, negatives=negatives, train_stage=stage), batch())
    torch.testing.assert_close(sampled[0], full[0])
    assert sampled[1].keys() == full[1].keys()
    for name, gradient in full[1].items():
        torch.testing.assert_close(sampled[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_shared_prefixes_and_stock_examples_alike(kind, build):
    """Both contain the same items, so that they have the same candidates and the same loss."""
    stock, shared = (loss_and_gradients(build(kind, negatives=9), batch(windows)) for windows in (False, True))
    torch.testing.assert_close(shared[0], stock[0])
    for name, gradient in stock[1].items():
        torch.testing.assert_close(shared[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_encodes_only_what_the_batch_needs(build, monkeypatch):
    model, seen = build(negatives=2), []
    encode = model.batch_contents
    monkeypatch.setattr(model, "batch_contents", lambda items: seen.append(items) or encode(items))
    model.calculate_loss(batch())
    needed = {0, *batch()["item_id_list"].flatten().tolist(), *batch()["item_id"].tolist()}
    assert needed <= set(seen[0].tolist()) and len(seen[0]) <= len(needed) + 2 and len(seen) == 1


def test_inclusion_probabilities_are_the_frequencies():
    """How often an item is a candidate, over many random batches."""
    torch.manual_seed(0)
    sampler, times, size = Sampler(TARGETS, ITEMS, negatives=6), 4000, 8
    counted, stated = torch.zeros(ITEMS), torch.zeros(ITEMS)
    for _ in range(times):
        candidates, log_probability = sampler(TARGETS[torch.randperm(len(TARGETS))[:size]])
        assert torch.equal(candidates, candidates.unique())
        counted[candidates] += 1
        stated[candidates] = log_probability.exp()
    assert stated.min() > 0.1 and stated[3] > 0.95 and stated[0] == pytest.approx(6 / ITEMS)
    torch.testing.assert_close(counted / times, stated, rtol=0.08, atol=0.03)


def test_the_mean_gradient_tends_to_the_full_one():
    """The softmax's denominator is estimated without bias, and its gradient's error falls as negatives grow."""
    torch.manual_seed(0)
    queries, targets = torch.randn(16, WIDTH), TARGETS[torch.randperm(len(TARGETS))[:16]]
    table = torch.randn(ITEMS, WIDTH, requires_grad=True)

    def gradient(loss):
        return torch.autograd.grad(loss, table)[0]

    full = gradient(functional.cross_entropy(queries @ table.T, targets))
    errors = []
    for negatives in (2, 10, 39):
        sampler, mean = Sampler(TARGETS, ITEMS, negatives), torch.zeros_like(table)
        for _ in range(300):
            candidates, log_probability = sampler(targets)
            own = torch.searchsorted(candidates, targets)
            mean += gradient(sampled_cross_entropy(queries @ table[candidates].T, own, log_probability, 1.0)) / 300
        errors.append(float((mean - full).norm() / full.norm()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


def test_a_target_twice_is_no_negative_of_itself():
    """One column stands for both examples, and adds no second term to the denominator."""
    sampler = Sampler(TARGETS, ITEMS, negatives=0)
    candidates, log_probability = sampler(torch.tensor([3, 3]))
    assert candidates.tolist() == [3]
    scores = torch.tensor([[2.0], [1.0]], requires_grad=True)
    loss = sampled_cross_entropy(scores, torch.tensor([0, 0]), log_probability, 1.0)
    loss.backward()
    assert loss == 0 and not scores.grad.any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_under_a_seed(precision, kind, build):
    more = {"negatives": 3, "train_precision": precision, **dict.fromkeys(NO_DROPOUT, 0.4)}
    first, second = (loss_and_gradients(build(kind, **more), batch()) for _ in range(2))
    assert first[0].isfinite() and first[0].dtype == torch.float32 and torch.equal(first[0], second[0])
    assert all(torch.equal(gradient, second[1][name]) for name, gradient in first[1].items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_in_evaluation_mode_is_full(kind, build):
    """So that the check of shared prefixes compares numbers without chance, and finds that they can be shared."""
    full, sampled = build(kind, softmax="full").eval(), build(kind, negatives=1).eval()
    assert torch.equal(sampled.calculate_loss(batch()), full.calculate_loss(batch()))
    assert not torch.equal(sampled.train().calculate_loss(batch()), full.calculate_loss(batch()))


def test_auto_is_full_for_small_catalogues(build):
    small, large = build(softmax="auto", items=LEAST_ITEMS), build(softmax="auto", items=LEAST_ITEMS + 1)
    assert small.sampler is None and large.sampler is not None
    assert not small.bfloat16 and not any(isinstance(module, QuickDropout) for module in small.modules())


@pytest.mark.parametrize(("key", "word"), [("softmax", "sample"), ("train_precision", "float16")])
def test_unknown_words(key, word, build):
    with pytest.raises(UserError, match=f"{key} '{word}' is not legal: use one of auto, "):
        build(**{key: word})


def test_dropout_of_random_bytes():
    """Its mean is the input, its share of zeros is p to within 1/512, and it does nothing outside training."""
    torch.manual_seed(0)
    drop, x = QuickDropout(0.2), torch.ones(1001, 333, requires_grad=True)
    dropped = drop(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.2, abs=4e-3)
    assert float(dropped.detach().mean()) == pytest.approx(1, abs=5e-3)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped.detach())
    assert torch.equal(drop.eval()(x), x) and isinstance(drop, nn.Module)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("windows", [False, True])
def test_bfloat16_in_few_shapes_gives_nearly_the_same(kind, windows, build):
    """Padding adds no candidate, no example and no item: only rounding differs."""
    exact, rough = (
        loss_and_gradients(build(kind, negatives=9, train_precision=precision), batch(windows))
        for precision in ("float32", "bfloat16")
    )
    torch.testing.assert_close(rough[0], exact[0], rtol=0.02, atol=0.02)
    for name, gradient in exact[1].items():
        assert float((rough[1][name] - gradient).norm()) <= 0.1 * float(gradient.norm()) + 1e-4, name


def test_sizes_are_few_and_close():
    sizes = {rounded(number) for number in range(1, 4097)}
    assert len(sizes) < 110 and all(
        number <= rounded(number) <= max(number * 17 / 16, number + 7.5) for number in range(1, 4097)
    )
    lengths = torch.tensor([1, 7, 50, 2, 5, 700, 1])
    groups = by_width(lengths)
    assert torch.cat([group for group, _ in groups]).sort().values.tolist() == list(range(7))
    assert all(int(lengths[group].max()) <= width for group, width in groups)
