"""UniM2Rec: masked fusion, the contract of a teacher, its losses in numbers, what it learns from images."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.keys import teacher_settings
from recbole_prmkd.students.causal_check import why_not_shared
from recbole_prmkd.teachers import unim2rec, unisrec
from recbole_prmkd.teachers.unim2rec import UniM2Rec
from recbole_prmkd.teachers.unisrec import MoEAdaptor, UniSRec

N, TEXT, IMAGE, D, LONGEST = 9, 6, 5, 8, 7
BOTH, TEXT_ONLY, IMAGE_ONLY, NEITHER = [1, 2, 3, 7, 8], [4], [5], [0, 6]
SETTINGS = {
    **{"hidden_size": D, "inner_size": 6, "n_exps": 3, "layer_norm_eps": 1e-12, "seed": 1},
    **{"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "NEG_PREFIX": "neg_"},
    **{"ITEM_LIST_LENGTH_FIELD": "item_length", "MAX_ITEM_LIST_LENGTH": LONGEST},
    **{"train_batch_size": 64, "kd_window_context": 0.5, "device": torch.device("cpu")},
}
BATCH = {"item_id_list": torch.tensor([[1, 2, 4, 5], [7, 8, 0, 0], [3, 6, 2, 0]])}
BATCH |= {"item_length": torch.tensor([4, 2, 3]), "item_id": torch.tensor([3, 4, 1])}


def random_side(seed=0, junk=0.0):
    """Text [N, TEXT] and image [N, IMAGE] vectors, and who has an image; absent images hold junk."""
    generator = torch.Generator().manual_seed(seed)
    text, image = torch.randn(N, TEXT, generator=generator), torch.randn(N, IMAGE, generator=generator)
    text[IMAGE_ONLY + NEITHER] = 0
    present = torch.isin(torch.arange(N), torch.tensor(BOTH + IMAGE_ONLY))
    image[~present] = junk
    return text, image, present


NO_IMAGES = (random_side()[0], torch.zeros(N, 1), torch.zeros(N, dtype=torch.bool))


@pytest.fixture
def build(monkeypatch):
    """Builds a model in evaluation mode, always with the same random numbers; gate: spread of its weights."""

    def make(side=None, kind=UniM2Rec, gate=0.0, **settings):
        text, image, present = side or random_side()
        for module in (unim2rec, unisrec):
            monkeypatch.setattr(module, "item_text_vectors", lambda config, dataset: text)
        monkeypatch.setattr(unim2rec, "item_image_vectors", lambda config, dataset: (image, present))
        torch.manual_seed(5)
        config = {**teacher_settings(kind.__name__, {}), **SETTINGS, **settings}
        model = kind(config, SimpleNamespace(num=lambda field: len(text))).eval()
        for linear in model.gates.values() if gate else ():
            torch.nn.init.normal_(linear.weight, std=gate)
        return model

    return make


def test_shapes_and_names(build):
    model = build(train_stage="transductive")
    assert model.modalities == ("text", "image") and model.encode_items().shape == (N, D)
    assert model.full_sort_predict(BATCH).shape == (3, N) and model.predict(BATCH).shape == (3,)
    shapes = {"missing": (D,), "LayerNorm.weight": (D,), "LayerNorm.bias": (D,)}
    shapes |= {"position_embedding.weight": (LONGEST, D), "item_embedding.weight": (N, D)}
    for name, width, table in (("text", TEXT, "plm_embedding"), ("image", IMAGE, "image_embedding")):
        shapes |= {f"{table}.weight": (N, width), f"gates.{name}.weight": (1, D), f"gates.{name}.bias": (1,)}
        adaptor = MoEAdaptor(3, width, D, 0.2).state_dict()
        shapes |= {f"adaptors.{name}.{key}": tuple(x.shape) for key, x in adaptor.items()}
    own = {name: tuple(x.shape) for name, x in model.state_dict().items() if "trm_encoder" not in name}
    assert own == shapes and model.side_information == ("plm_embedding", "image_embedding")


@pytest.mark.parametrize("fusion", ["gate", "mean"])
def test_fusion_masks_what_an_item_lacks(build, fusion):
    model = build(fusion=fusion, gate=20.0)
    adapted, items = model.adapted(), model.encode_items()
    assert torch.equal(items[TEXT_ONLY], adapted[TEXT_ONLY, 0])
    assert torch.equal(items[IMAGE_ONLY], adapted[IMAGE_ONLY, 1])
    assert torch.equal(items[NEITHER], model.missing.expand(2, -1))
    text, image = adapted[BOTH].unbind(1)
    share = torch.full((len(BOTH), 1), 0.5)
    if fusion == "gate":  # a softmax of two is a sigmoid of the difference
        share = torch.sigmoid(model.gates["text"](text) - model.gates["image"](image))
        assert share.std() > 0.01
    torch.testing.assert_close(items[BOTH], share * text + (1 - share) * image)
    assert torch.equal(build(fusion="gate").encode_items(), build(fusion="mean").encode_items())  # untrained


@pytest.mark.parametrize("junk", [1.0, -1e30, torch.nan, torch.inf])
def test_junk_of_absent_images_changes_nothing(build, junk):
    clean, dirty = (build(side, gate=20.0) for side in (random_side(), random_side(junk=junk)))
    assert torch.equal(dirty.encode_items(), clean.encode_items())
    for model in (clean, dirty):
        model.calculate_loss(BATCH).backward()
    pairs = [(a.grad, b.grad) for a, b in zip(dirty.parameters(), clean.parameters(), strict=True)]
    assert all(torch.equal(own, other) for own, other in pairs if other is not None)  # so none is NaN


def test_without_images_it_is_unisrec(build, tmp_path, caplog):
    caplog.set_level("INFO")
    text_only, same = build(fusion="text").state_dict(), build(NO_IMAGES).state_dict()
    reference = build(kind=UniSRec)
    assert "text-only" in caplog.text and same.keys() == text_only.keys()
    assert all(torch.equal(tensor, same[name]) for name, tensor in text_only.items())
    save_file(reference.state_dict(), tmp_path / "unisrec.safetensors")
    model, free = build(NO_IMAGES, unit_vectors=False), build(freeze_pretrained=False)
    model.load_checkpoint(tmp_path / "unisrec.safetensors")
    model.missing.data = reference.encode_items()[0]  # what UniSRec makes of no text
    torch.testing.assert_close(model.full_sort_predict(BATCH), reference.full_sort_predict(BATCH))
    torch.testing.assert_close(model.calculate_loss(BATCH), reference.calculate_loss(BATCH))
    free.load_checkpoint(tmp_path / "unisrec.safetensors")
    assert free.position_embedding.weight.requires_grad and not model.position_embedding.weight.requires_grad


def test_checkpoint_of_another_data_set(build, tmp_path):
    source = build(gate=20.0)
    save_file(source.state_dict(), tmp_path / "m2.safetensors")
    text, image, present = random_side(seed=9)
    target = build([table[:6] for table in (text, image, present)], unit_vectors=False)
    target.load_checkpoint(tmp_path / "m2.safetensors")
    assert torch.equal(target.gates["image"].weight, source.gates["image"].weight)
    assert torch.equal(target.image_embedding.weight, image[:6])
    with pytest.raises(UserError, match=r"adaptors\.image\..* has shape \(5.*wants \(4"):
        build((text, image[:, :4], present)).load_checkpoint(tmp_path / "m2.safetensors")


def test_switches_of_items(build):
    unit, raw = build(), build(unit_vectors=False)
    assert torch.equal(raw.image_embedding.weight, random_side()[1])
    assert torch.equal(unit.image_embedding.weight, functional.normalize(random_side()[1], dim=1))
    assert not build(missing_item="zero").encode_items()[NEITHER].any()
    assert build(train_stage="transductive").covered_items().tolist() == [False] + [True] * (N - 1)
    assert unit.covered_items().nonzero().flatten().tolist() == sorted(BOTH + TEXT_ONLY + IMAGE_ONLY)
    for position, (fusion, covered) in enumerate({"text": BOTH + TEXT_ONLY, "image": BOTH + IMAGE_ONLY}.items()):
        alone = build(fusion=fusion)
        assert alone.modalities == (fusion,) and not alone.gates
        assert alone.covered_items().nonzero().flatten().tolist() == sorted(covered)
        unit.load_state_dict(alone.state_dict(), strict=False)
        assert torch.equal(alone.encode_items()[covered], unit.adapted()[covered, position])


def test_gradient_reaches_what_is_present(build):
    model = build(train_stage="transductive", gate=20.0)
    model.calculate_loss(BATCH).backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"missing", "gates.text.weight", "gates.image.weight", "item_embedding.weight"} <= touched
    assert not touched & {"plm_embedding.weight", "image_embedding.weight"}
    # An item's vector moves the adaptors of what it has only.
    for items, expected in ((TEXT_ONLY, [1, 0]), (IMAGE_ONLY, [0, 1]), (BOTH, [1, 1]), (NEITHER, [0, 0])):
        model.zero_grad()
        model.encode_items()[items].sum().backward()
        assert [a.experts[0].lin.weight.grad.any() for a in model.adaptors.values()] == expected


def test_evaluation_is_deterministic_and_causal(build, monkeypatch):
    model = build()
    assert torch.equal(model.full_sort_predict(BATCH), model.full_sort_predict(BATCH))
    assert not torch.equal(build().train().full_sort_predict(BATCH), model.full_sort_predict(BATCH))
    monkeypatch.setattr(model, "gather_indexes", lambda output, index: output)  # all positions
    sequence, rest = torch.tensor([[1, 2, 3, 4, 5]]), (torch.tensor([5]), model.encode_items())
    before = model.encode_histories(sequence, *rest)  # [1, 5, D]
    for position in range(1, 5):  # items from here on are others
        after = model.encode_histories(torch.where(torch.arange(5) < position, sequence, sequence + 3), *rest)
        torch.testing.assert_close(after[:, :position], before[:, :position])
        assert not torch.allclose(after[:, position], before[:, position])


def test_shares_prefixes(build):
    """Several targets per sequence give the same loss and scores as one padded row per target."""
    items = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 3, 1, 5])
    start, stop = torch.tensor([0, 0, 0, 0, 6, 6, 6]), torch.tensor([1, 2, 4, 5, 7, 8, 10])
    examples = Examples(torch.tensor([1, 1, 1, 1, 2, 2, 2]), items[stop], start, stop, items)
    config = {**teacher_settings("UniM2Rec", {}), **SETTINGS}
    heavy = {"text_image_weight": 1.0, "modality_weight": 1.0, "train_stage": "transductive"}
    for settings in ({}, heavy, {"fusion": "image"}):
        assert why_not_shared(build(**settings), config, examples) is None


def test_losses_in_numbers(build):
    model, adapted = build(temperature=1.0, text_image_weight=0.5, modality_weight=0.25), torch.zeros(N, 2, D)
    adapted[1, :, 0] = adapted[2, :, 1] = 3.0  # text = image, items 1 and 2 orthogonal
    aligned = torch.tensor(1 + torch.e**-1).log()  # softmax of cosines 1 and 0, at the first
    # Item 4 has no image, item 6 nothing.
    torch.testing.assert_close(model.text_image_loss(adapted, model.present, torch.tensor([1, 2, 2, 4, 6])), aligned)
    crossed = adapted.clone()
    crossed[[1, 2], 1] = adapted[[2, 1], 1]  # each has the other's image
    torch.testing.assert_close(model.text_image_loss(crossed, model.present, torch.tensor([1, 2])), aligned + 1)
    assert model.text_image_loss(adapted, model.present, torch.tensor([4, 5, 6])) == 0
    histories = adapted[[1, 2, 1, 2], 0]  # each points at its target; the last target has neither modality
    torch.testing.assert_close(
        model.modality_loss(adapted, model.present, histories, torch.tensor([1, 2, 1, 6])), aligned
    )
    assert model.modality_loss(adapted, model.present, histories[:1], torch.tensor([6])) == 0
    # Targets 4 and 1 in text (4 is orthogonal to all); in image only 1, so there is nothing to tell apart.
    text = functional.cross_entropy(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 0]))
    torch.testing.assert_close(
        model.modality_loss(adapted, model.present, histories[:2], torch.tensor([4, 1])), text / 2
    )
    adapted, targets = model.adapted(), BATCH["item_id"]
    histories = model.encode_batch(BATCH, model.fuse(adapted, model.present))
    loss = functional.cross_entropy(model.scores(histories, model.fuse(adapted, model.present)), targets)
    extra = (
        model.text_image_loss(adapted, model.present, targets) / 2
        + model.modality_loss(adapted, model.present, histories, targets) / 4
    )
    torch.testing.assert_close(model.calculate_loss(BATCH), loss + extra)


def test_mistakes(build):
    for settings, message in (
        ({"fusion": "max"}, r"fusion = 'max' is not legal: use one of gate, mean, text, image\.$"),
        ({"missing_item": "no"}, r"missing_item = 'no' is not legal: use one of learned, zero\.$"),
        ({"fusion": "image"}, r"needs images: name them with --kd_item_images\.$"),
    ):
        with pytest.raises(UserError, match=message):
            build(NO_IMAGES, **settings)


CLUSTERS, SIZE, SEEN = 6, 12, 8  # of each cluster's items, those from SEEN on are never seen in training


def known_signal(shuffle):
    """Text is noise, the image tells an item's cluster; items 1 .. CLUSTERS x SIZE, cluster by cluster."""
    torch.manual_seed(2)
    image = torch.randn(CLUSTERS, 12).repeat_interleave(SIZE, dim=0) + 0.3 * torch.randn(CLUSTERS * SIZE, 12)
    image = image[torch.randperm(len(image))] if shuffle else image
    tables = [functional.pad(table, (0, 0, 1, 0)) for table in (torch.randn(len(image), TEXT), image)]
    return *tables, torch.arange(len(image) + 1) > 0


def known_rows(number):
    """Histories of 4 seen items of one cluster with a seen item of it as target, and the cluster [number]."""
    cluster = torch.randint(CLUSTERS, (number,))
    items = 1 + cluster[:, None] * SIZE + torch.randint(SEEN, (number, 5))
    lengths = torch.full((number,), 4)
    return {"item_id_list": items[:, :4], "item_length": lengths, "item_id": items[:, 4]}, cluster


@pytest.mark.parametrize("shuffle", [False, True])
def test_learns_from_images_what_it_cannot_from_shuffled_ones(build, shuffle):
    """The loss falls either way; only true images tell the cluster of items that training never saw."""
    model = build(known_signal(shuffle), hidden_size=24, hidden_dropout_prob=0.1).train()
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=5e-3), []
    for _ in range(80):
        losses.append(model.calculate_loss(known_rows(64)[0]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    batch, cluster = known_rows(200)
    unseen = model.eval().full_sort_predict(batch)[:, 1:].view(-1, CLUSTERS, SIZE)[:, :, SEEN:].flatten(1)
    hits = (unseen.argmax(dim=1) // (SIZE - SEEN) == cluster).float().mean()
    assert hits < 0.5 if shuffle else hits > 0.9
