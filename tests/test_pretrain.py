"""Pre-training on several data sets: batches of mixed domains, one file and its card, picked up for fine-tuning."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import write_tiny
from safetensors.torch import load_file, save_file

import run_recbole_prmkd as command_line
from recbole_prmkd import UserError, pretrain, run_recbole_prmkd
from recbole_prmkd.data.examples import Examples
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config, with_absolute_paths
from recbole_prmkd.storage import store
from recbole_prmkd.storage.json_files import write_sealed
from recbole_prmkd.students.windows import WindowLoader
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.augment import drop_items
from recbole_prmkd.teachers.causal import FirstView
from recbole_prmkd.teachers.contrastive import cosines, info_nce
from recbole_prmkd.teachers.data import joined_data, second_half, teacher_data
from recbole_prmkd.teachers.pretrained import checkpoint_of

DATASETS = ["tiny", "other"]
SMALL = {
    "UniSRec": {"hidden_size": 16, "inner_size": 16, "n_exps": 2},
    "UniM2Rec": {"hidden_size": 16, "inner_size": 16, "n_exps": 2},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """data_path of two data sets whose users and items have the same tokens."""
    folder = tmp_path_factory.mktemp("two")
    for name in DATASETS:
        write_tiny(folder, name)
    return folder


@pytest.fixture
def small(two, settings, tmp_path):
    """Settings of a pre-training run of seconds into `folder`."""

    def make(folder="pretrained", **more):
        shared = settings()
        wanted = ("epochs", "MAX_ITEM_LIST_LENGTH", "show_progress", "kd_cache_dir")
        kept = {key: shared[key] for key in wanted}
        return {**kept, "data_path": str(two), "kd_teacher_dir": str(tmp_path / folder), **SMALL["UniSRec"], **more}

    return make


def make_data(small, **more):
    """Configuration and joined data of the two data sets."""
    configs = [load_config("UniSRec", name, config_dict=small(train_stage="pretrain", **more)) for name in DATASETS]
    splits = [load_split(config) for config in configs]
    return configs[0], joined_data(configs, [teacher_data(split, 2020) for split in splits]), splits


def test_domains_meet_in_a_batch_and_nowhere_else(small):
    config, data, splits = make_data(small)
    items = len(splits[0].item_tokens)
    users = len(splits[0].user_tokens)
    batches = list(WindowLoader(config, data.dataset(config, data.fit), data.fit))
    assert sum(len(batch["item_id"]) for batch in batches) == len(data.fit)
    for batch in batches:
        first = batch["item_id"] <= items
        assert first.any() and not first.all()
        history = batch["item_id_list"]
        assert torch.equal(((history <= items) | (history == 0)).all(dim=1), batch["user_id"] <= users)
    dataset = data.dataset(config, data.fit)
    tokens = dataset.field2id_token["item_id"]
    assert tokens[1] == f"tiny/{data.domains[0][1][0]}" and tokens[items + 1] == f"other/{data.domains[1][1][0]}"
    assert dataset.num("item_id") == len(tokens) == 1 + sum(len(split.item_tokens) for split in splits)


def test_windows_give_the_vectors_of_rows(small):
    config, data, _ = make_data(small)
    model = TEACHERS["UniSRec"](config, data.dataset(config, data.fit)).eval()
    short = data.fit.select(torch.nonzero(data.fit.lengths <= config["MAX_ITEM_LIST_LENGTH"]).squeeze(1))
    dataset = data.dataset(config, short)
    for batch in WindowLoader(config, dataset, short):
        histories, targets = model.pretrain_vectors(batch)
        single, same = model.pretrain_vectors(dataset[batch["kd_example"]])
        torch.testing.assert_close(histories, single, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(targets, same)


def test_second_views_of_windows_see_no_later_item(small):
    """Items after an example's position change nothing in its second view."""
    config, data, _ = make_data(small)
    model = TEACHERS["UniSRec"](config, data.dataset(config, data.fit)).eval()
    batch = next(iter(WindowLoader(config, data.dataset(config, data.fit), data.fit)))
    keep = torch.rand(batch["item_id_list"].shape) > 0.5
    other = {**batch.interaction, "item_id_list": batch["item_id_list"].clone()}
    other["item_id_list"][:, 3:] = batch["item_id_list"][:, 3:].flip(0)
    other["item_id_list"] *= batch["item_id_list"] != 0
    early = batch["kd_offset"] < 3
    for view in (model.without_items, model.with_noise):
        with torch.no_grad():
            vectors = [view(FirstView(model, each), keep) for each in (batch, other)]
        torch.testing.assert_close(vectors[0][early], vectors[1][early], rtol=1e-4, atol=1e-5)


def test_dropped_items():
    item_seq = torch.tensor([[5, 6, 7, 8, 0], [1, 2, 0, 0, 0], [9, 0, 0, 0, 0]])
    keep = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    dropped = drop_items(item_seq, torch.tensor([4, 2, 1]), keep)
    assert dropped.item_seq.tolist() == [[7, 8, 0, 0, 0], [1, 2, 0, 0, 0], [9, 0, 0, 0, 0]]
    assert dropped.length.tolist() == [2, 2, 1]
    assert dropped.position[0].tolist()[:4] == [-1, -1, 0, 1]


def test_same_target_rules():
    scores = torch.tensor([[2.0, 1.0, 0.5], [0.0, 3.0, 1.0], [0.2, 0.1, 1.0]])
    targets = torch.tensor([4, 4, 7])

    def loss(rows):
        own = torch.stack([row[0] for row in rows])
        return (torch.stack([row.logsumexp(0) for row in rows]) - own).mean()

    def row(*values):
        return torch.tensor(values)

    expected = {
        "keep": loss([row(2, 1, 0.5), row(3, 0, 1.0), row(1, 0.2, 0.1)]),
        "zero": loss([row(2, 0, 0.5), row(3, 0, 1.0), row(1, 0.2, 0.1)]),
        "mask": loss([row(2, 0.5), row(3, 1.0), row(1, 0.2, 0.1)]),
    }
    for rule, value in expected.items():
        torch.testing.assert_close(info_nce(scores, targets, rule), value)
    with pytest.raises(ValueError, match="same_target"):
        info_nce(scores, targets, "forget")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_zero_vector_spoils_neither_cosines_nor_gradients(dtype):
    """The padding's vector is zero; mixed precision on a GPU is float16, where 1e-12 is zero too."""
    contents = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]], dtype=dtype)
    weight = torch.eye(2, dtype=dtype, requires_grad=True)
    scores = cosines(contents[1:], contents @ weight)
    torch.testing.assert_close(scores.float(), torch.tensor([[0, 1, 0.6], [0, 0.6, 1]]), rtol=0, atol=1e-2)
    scores.logsumexp(1).sum().backward()
    assert weight.grad.isfinite().all()


def test_second_half():
    lengths = torch.tensor([1, 2, 3, 4, 1, 2])
    start = torch.tensor([0, 0, 0, 0, 9, 9])
    examples = Examples(start, torch.arange(6), start, start + lengths, torch.arange(20))
    # Users of 5 and 3 items: targets at positions 3, 4 of 0..4 and at 2 of 0..2.
    assert second_half(examples).targets.tolist() == [2, 3, 5]


def test_official_names_and_no_table_of_items(small):
    made = pretrain("UniSRec", DATASETS, config_dict=small(n_exps=8))
    weights = load_file(made["checkpoint"])
    assert len(weights) == 53
    assert not {"plm_embedding.weight", "noisy_plm_embedding.weight", "item_embedding.weight"} & weights.keys()
    card = made["card"]
    assert card["parameters"] == sum(tensor.numel() for tensor in weights.values())
    assert [entry["name"] for entry in card["datasets"]] == DATASETS
    assert all(entry["rows"] > 0 and len(entry["text_file"]) == 64 for entry in card["datasets"])


@pytest.mark.parametrize("teacher", ["UniSRec", "UniM2Rec"])
def test_command_line_then_fine_tuning(teacher, small, settings, tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(small(**SMALL[teacher])))
    options = [f"--model={teacher}", "--train_stage=pretrain", f"--datasets={','.join(DATASETS)}"]
    monkeypatch.setattr(sys, "argv", ["run", *options, f"--config_files={config}"])
    command_line.main()
    folder = tmp_path / "pretrained"
    file, card = folder / f"{teacher}.safetensors", json.loads((folder / f"{teacher}.json").read_text())
    assert card["sha256"] == store.file_digest(file) and card["epochs"] == 2
    assert sorted(path.name for path in folder.iterdir()) == [f"{teacher}-pretraining", card_name(file), file.name]

    # Again: nothing is trained.
    log = next((folder / f"{teacher}-pretraining").glob("log/**/*.log"))
    written = [path.stat().st_mtime_ns for path in (file, log)]
    command_line.main()
    assert [path.stat().st_mtime_ns for path in (file, log)] == written

    monkeypatch.setattr(sys, "argv", ["run"])
    sizes = {f"kd_{teacher}_{key}".lower(): value for key, value in SMALL[teacher].items()}
    sizes |= {f"kd_{teacher}_epochs".lower(): 1, f"kd_{teacher}_max_item_list_length".lower(): 6}
    run = run_recbole_prmkd(
        "SASRec", "tiny", config_dict=settings(kd="single", kd_teachers=[teacher], kd_teacher_dir=str(folder), **sizes)
    )
    assert run["result"]["teachers"][teacher]["checkpoint"] == str(file)
    fitted = next((folder / "tiny").glob(f"teacher-{teacher}-*/weights.safetensors"))
    before, after = load_file(file), load_file(fitted)
    for name, tensor in before.items():  # the Transformer stays, the rest is tuned
        if name.startswith(("trm_encoder", "position_embedding")):
            assert torch.equal(tensor, after[name])
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_recformer_from_a_small_encoder(small, two, tiny_encoder, settings, tmp_path):
    sizes = {"attention_window": 8, "max_item_embeddings": 8, "MAX_ITEM_LIST_LENGTH": 4, "max_token_num": 64}
    given = small(kd_text_encoder=str(tiny_encoder), epochs=1, max_rows_per_epoch=48, max_validation_rows=16, **sizes)
    made = pretrain("Recformer", DATASETS, config_dict=given)
    weights, card = load_file(made["checkpoint"]), made["card"]
    assert {"longformer.embeddings.word_embeddings.weight", "lm_head.decoder.weight"} <= weights.keys()
    assert "item_embedding.weight" not in weights and card["in_batch_accuracy"] > 0
    own = {f"kd_recformer_{key}".lower(): value for key, value in sizes.items()}
    own |= {"kd_recformer_epochs": 1, "kd_recformer_stage_two_epochs": 0, "kd_recformer_max_rows_per_epoch": 16}
    shared = settings(kd="single", kd_teachers=["Recformer"], kd_teacher_dir=given["kd_teacher_dir"], **own)
    run = run_recbole_prmkd("BPR", "tiny", config_dict={**shared, "kd_text_encoder": str(tiny_encoder)})
    assert run["result"]["teachers"]["Recformer"]["checkpoint"] == made["checkpoint"]


def card_name(file):
    return file.with_suffix(".json").name


def test_a_teacher_as_the_model_starts_from_it_too(small, settings, monkeypatch):
    made = pretrain("UniSRec", DATASETS, config_dict=small())
    shared = settings(kd_unisrec_checkpoint=made["checkpoint"], epochs=1, **SMALL["UniSRec"])
    run = run_recbole_prmkd("UniSRec", "tiny", config_dict=shared)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        state = torch.load(f"{run['output_dir']}/UniSRec.pth")["state_dict"]
    name = "trm_encoder.layer.0.feed_forward.dense_1.weight"
    assert torch.equal(state[name].cpu(), load_file(made["checkpoint"])[name])


def test_test_and_validation_items_change_nothing(small, tmp_path):
    """Another last item of one user: the same weights, byte for byte."""
    made = []
    for n, swap in enumerate([None, (3, -1, 7), (3, -2, 7)]):
        data = tmp_path / f"data{n}"
        for name in DATASETS:
            write_tiny(data, name, swap=swap)
        given = small(f"folder{n}", data_path=str(data), kd_cache_dir=str(tmp_path / f"cache{n}"))
        made.append(store.file_digest(pretrain_file(given)))
    assert made[0] == made[1] == made[2]


def pretrain_file(given):
    return Path(pretrain("UniSRec", DATASETS, config_dict=given)["checkpoint"])


def test_another_teacher_in_the_folder_is_not_lost(small):
    made = pretrain("UniSRec", DATASETS, config_dict=small())
    before = store.file_digest(pretrain_file(small()))
    with pytest.raises(UserError, match=r"made from other data or settings .*settings.*--kd_rebuild"):
        pretrain("UniSRec", DATASETS, config_dict=small(seq_seq_weight=0.5))
    assert store.file_digest(pretrain_file(small())) == before
    again = pretrain("UniSRec", DATASETS, config_dict=small(seq_seq_weight=0.5, kd_rebuild=True))
    assert again["card"]["settings"]["seq_seq_weight"] == 0.5 and again["checkpoint"] == made["checkpoint"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card | {"teacher": "Recformer"}, "holds a pre-trained Recformer, not UniSRec"),
        (lambda card: card | {"text_encoder": {"name": "bert", "digest": "0"}}, "pre-trained with text encoder bert"),
        (lambda card: card | {"sha256": "0"}, "is not the file that"),
    ],
)
def test_a_card_that_does_not_fit(change, message, small, settings):
    made = pretrain("UniSRec", DATASETS, config_dict=small())
    card = Path(made["checkpoint"]).with_suffix(".json")
    write_sealed(card, change(json.loads(card.read_text())))
    with pytest.raises(UserError, match=message):
        run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="mean", kd_unisrec_checkpoint=made["checkpoint"]))


def test_an_encoder_is_known_by_its_content(small, settings, tiny_encoder, tmp_path, monkeypatch):
    """Named by a relative path it is the same as by an absolute one, which comparisons and sweeps use."""
    monkeypatch.chdir(tiny_encoder.parent)
    made = pretrain("UniSRec", DATASETS, config_dict=small(kd_text_encoder=tiny_encoder.name))
    again = pretrain("UniSRec", DATASETS, config_dict=small(kd_text_encoder=str(tiny_encoder)))
    assert again["card"]["sha256"] == store.file_digest(Path(made["checkpoint"]))  # reused
    assert again["card"]["text_encoder"] == made["card"]["text_encoder"]
    config = load_config(
        "BPR",
        "tiny",
        config_dict=settings(kd="mean", kd_text_encoder=str(tiny_encoder), kd_unisrec_checkpoint=made["checkpoint"]),
    )
    file, _ = checkpoint_of("UniSRec", config)
    assert str(file) == made["checkpoint"]


def test_a_checkpoint_of_another_width_names_key_and_shapes(small, settings, tmp_path):
    made = pretrain("UniSRec", DATASETS, config_dict=small())
    plain = tmp_path / "plain.safetensors"
    save_file(load_file(made["checkpoint"]), plain)
    given = settings(kd="mean", kd_unisrec_checkpoint=str(plain), kd_unisrec_hidden_size=12)
    with pytest.raises(UserError, match=r"has shape \(\d.*, this model wants \(\d.*made with\.$"):
        run_recbole_prmkd("SASRec", "tiny", config_dict=given)
    folder = settings(kd="mean", kd_teacher_dir=str(Path(made["checkpoint"]).parent), kd_unisrec_hidden_size=12)
    with pytest.raises(UserError, match=r"this model wants \(\d.*kd_teacher_dir: --kd_unisrec_checkpoint=scratch"):
        run_recbole_prmkd("SASRec", "tiny", config_dict=folder)


def test_a_further_teacher_from_scratch_beside_the_kinds_file(small, settings):
    made = pretrain("UniSRec", DATASETS, config_dict=small())
    own = {**SMALL["UniSRec"], "max_item_list_length": settings()["MAX_ITEM_LIST_LENGTH"]}
    given = settings(
        kd="mean",
        kd_teacher_dir=str(Path(made["checkpoint"]).parent),
        kd_teachers=["UniSRec", "UniSRec_new"],
        kd_unisrec_new_checkpoint="scratch",
        **{f"kd_{teacher}_{key}": own[key] for teacher in ("unisrec", "unisrec_new") for key in own},
    )
    teachers = run_recbole_prmkd("SASRec", "tiny", config_dict=given)["result"]["teachers"]
    assert teachers["UniSRec"]["checkpoint"] == made["checkpoint"] and teachers["UniSRec_new"]["checkpoint"] is None
    assert teachers["UniSRec"]["holdout"] != teachers["UniSRec_new"]["holdout"]
    absolute = with_absolute_paths(given, load_config("SASRec", "tiny", config_dict=given))
    assert absolute["kd_unisrec_new_checkpoint"] == "scratch"  # not a path, from whatever folder


def test_keys_of_a_teacher_that_is_the_model(settings, tmp_path):
    given = settings(
        kd_unisrec_epochs=3, kd_unisrec_checkpoint="scratch", kd_recformer_epochs=2, epochs=1, **SMALL["UniSRec"]
    )
    run_recbole_prmkd("UniSRec", "tiny", config_dict=given)
    log = next((tmp_path / "out" / "log").rglob("*.log")).read_text()
    assert "kd_unisrec_epochs has no effect here: UniSRec is the model, so set epochs itself." in log
    assert "kd_recformer_epochs has no effect here: no teacher Recformer is named." in log
    assert "kd_unisrec_checkpoint has no effect" not in log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model=SASRec", "--train_stage=pretrain", "--datasets=tiny"], "Only a teacher can be pre-trained"),
        (["--model=UniSRec", "--train_stage=pretrain", "--datasets=tiny,tiny"], "names a data set twice"),
        (["--model=UniSRec", "--train_stage=pretrain", "--datasets=tiny,nowhere"], "nowhere.inter"),
        (["--model=UniSRec", "--datasets=tiny,other"], "--train_stage=pretrain"),
        (["--model=UniSRec", "--train_stage=pretrain"], "--datasets=first,second"),
        (["--model=UniSRec", "--dataset=tiny", "--train_stage=finetune"], "pretrain, inductive, transductive"),
        (["--model=UniSRec", "--train_stage=pretrain", "--datasets=tiny", "--same_target=no"], "zero, mask, keep"),
    ],
)
def test_refusals(options, words, small, tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**small(), "kd_output_dir": str(tmp_path / "out")}))
    monkeypatch.setattr(sys, "argv", ["run", *options, f"--config_files={config}"])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    sentence = str(caught.value.code)
    assert words in sentence and "\n" not in sentence
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


def test_images_of_one_data_set_and_none_of_the_other(small, tmp_path):
    """`{dataset}` stands for each name; items of the data set without a file have text alone."""
    tokens = [f"i{item}" for item in range(20)]
    np.savez(tmp_path / "tiny.npz", item_id=np.array(tokens), feat=np.random.default_rng(0).random((20, 7)))
    given = small(kd_item_images=str(tmp_path / "{dataset}.npz"), kd_text_fields=["title", "plot"], **SMALL["UniM2Rec"])
    configs = [load_config("UniM2Rec", name, config_dict=given | {"train_stage": "pretrain"}) for name in DATASETS]
    data = joined_data(configs, [teacher_data(load_split(config), 2020) for config in configs])
    model = TEACHERS["UniM2Rec"](configs[0], data.dataset(configs[0], data.fit))
    assert model.modalities == ("text", "image")
    names = data.dataset(configs[0], data.fit).field2id_token["item_id"]
    with_image = {name for name, (_, image) in zip(names, model.present.tolist(), strict=True) if image}
    assert with_image == {f"tiny/{token}" for token in tokens}
    assert model.present[1:, 0].all()
    made = pretrain("UniM2Rec", DATASETS, config_dict=given)
    assert {"adaptors.image.w_gate", "gates.image.weight"} <= load_file(made["checkpoint"]).keys()
    # A target without images takes the text side alone.
    plain = small(kd_unim2rec_checkpoint=made["checkpoint"], epochs=1, **SMALL["UniM2Rec"])
    run_recbole_prmkd("UniM2Rec", "tiny", config_dict={**plain, "kd_output_dir": str(tmp_path / "out")})
