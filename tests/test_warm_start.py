"""Item warm start: principal components in the student's own item table, for any student that has one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.utils import ModelType, get_model, init_seed

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.students.warm_start import item_tables, principal_components, warm_start
from recbole_prmkd.teachers import item_start
from recbole_prmkd.teachers.holdout import Ranked
from recbole_prmkd.teachers.item_start import source_of
from tests.conformance import SMALL, write_data


def test_components_are_those_of_the_singular_values():
    vectors = torch.randn(20, 6) @ torch.randn(6, 6)
    known = torch.ones(20, dtype=torch.bool)
    known[[0, 7]] = False
    components = principal_components(vectors, known, 3, 0.2)
    centred = vectors[known] - vectors[known].mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = u[:, :3] * s[:3]
    expected *= 0.2 / expected.std()
    torch.testing.assert_close(components.abs(), expected.abs(), rtol=1e-4, atol=1e-5)
    assert components.std().item() == pytest.approx(0.2)
    torch.testing.assert_close(components, principal_components(vectors, known, 3, 0.2), rtol=0, atol=0)
    # Distances in the space of all components are those of the vectors.
    every = principal_components(vectors, known, 6, 1.0)
    ratio = torch.pdist(every) / torch.pdist(centred)
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("student", "tables"),
    [("KTUP", ["item_embedding"]), ("MKR", ["item_embeddings_lookup"]), ("KGCN", ["entity_embedding"])],
)
def test_items_of_knowledge_models_are_the_first_entities(student, tables, tmp_path):
    config = load_config(student, "small", config_dict={**SMALL, "data_path": str(write_data(tmp_path)), "kd": "mean"})
    data = load_split(config).dataset
    model = get_model(student)(config, data)
    assert [(name, first) for name, _, first in item_tables(model, config, data)] == [(name, 0) for name in tables]
    entity, item = data.field2token_id[data.entity_field], data.field2token_id["item_id"]
    assert len(data.item2entity) == len(item) - 1  # without PAD
    assert all(entity[linked] == item[token] for token, linked in data.item2entity.items())


@pytest.mark.parametrize(
    ("student", "tables"),
    [
        ("SASRec", ["item_embedding"]),
        ("BERT4Rec", ["item_embedding"]),
        ("LightGCN", ["item_embedding"]),
        ("BPR", ["item_embedding"]),
        ("NeuMF", ["item_mf_embedding", "item_mlp_embedding"]),
        ("DeepFM", ["token_embedding_table.embedding"]),
        ("FPMC", ["IU_emb", "LI_emb", "IL_emb"]),
        ("DIN", ["embedding_layer.token_embedding_table.item.embedding"]),
    ],
)
def test_tables_of_students(student, tables, settings):
    config = load_config(student, "tiny", config_dict=settings(kd="mean"))
    split = load_split(config)
    init_seed(1, True)
    model = get_model(student)(config, split.train_data._dataset)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert [name for name, _, _ in item_tables(model, config, split.dataset)] == tables
    vectors = torch.randn(split.dataset.item_num, 40)
    vectors[[0, 5]] = 0
    warm_start(model, config, split.dataset, vectors, source_of(config))
    known = torch.ones(split.dataset.item_num, dtype=torch.bool)
    known[[0, 5]] = False
    for name, table, first in item_tables(model, config, split.dataset):
        rows = first + torch.nonzero(known).squeeze(1)
        width = min(table.embedding_dim, int(known.sum()) - 1)  # centred vectors have one rank less
        assert table.weight[rows, :width].std().item() == pytest.approx(0.2, rel=1e-4)
        others = torch.ones_like(table.weight, dtype=torch.bool)
        others[rows, :width] = False
        assert torch.equal(table.weight[others], before[f"{name}.weight"][others])
        before.pop(f"{name}.weight")
    for name, value in before.items():
        assert torch.equal(model.get_parameter(name), value)


@pytest.mark.parametrize("source", ["text", "UniSRec"])
@pytest.mark.parametrize("kd", ["none", "mean"])
def test_runs(source, kd, settings):
    run = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd=kd, kd_item_init=source, kd_protocol="ranking"))
    plain = run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd=kd, kd_protocol="ranking"))
    assert run["result"]["student"]["parameters"] == plain["result"]["student"]["parameters"]
    assert run["result"]["student"]["train_losses"] != plain["result"]["student"]["train_losses"]
    assert np.isfinite(run["result"]["student"]["train_losses"]).all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"kd": "mean", "kd_item_init": "auto"}, "text"),
        ({"kd": "none", "kd_item_init": "auto", "kd_teachers": ["Vectors"]}, "text"),
        ({"kd": "mean", "kd_item_init": "auto", "kd_teachers": ["Vectors"]}, "Vectors"),
        ({"kd": "mean", "kd_item_init": "auto", "kd_teachers": ["Vectors", "UniSRec"]}, "text"),
        ({"kd": "prmkd_plus"}, "text"),
        ({"kd": "prmkd"}, "none"),
    ],
)
def test_what_auto_starts_from(given, expected, settings):
    assert source_of(load_config("SASRec", "tiny", config_dict=settings(**given))) == expected


def test_auto_leaves_students_without_an_item_table_as_they_are(settings, caplog):
    """A preset that holds auto works for every student."""
    given = settings(kd="prmkd_plus", epochs=1)
    run = run_recbole_prmkd("MultiVAE", "tiny", config_dict=given)
    log = next((Path(run["output_dir"]) / "log").rglob("*.log")).read_text()
    plain = run_recbole_prmkd("MultiVAE", "tiny", config_dict={**given, "kd_item_init": "none"})
    assert "No warm start: MultiVAE has no embedding of items" in log
    assert run["result"]["student"]["train_losses"] == plain["result"]["student"]["train_losses"]


def test_refusals(settings):
    with pytest.raises(UserError, match="kd_item_init = 'txt' is not allowed: use one of none, auto, text, UniSRec"):
        run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd_item_init="txt"))
    with pytest.raises(UserError, match="MultiVAE has no embedding of items"):
        run_recbole_prmkd("MultiVAE", "tiny", config_dict=settings(kd_item_init="text", kd="none"))


@pytest.mark.parametrize(
    ("kind", "recurrent", "ndcg", "start"),
    [
        (ModelType.SEQUENTIAL, False, 0.04, "none"),  # below popularity
        (ModelType.SEQUENTIAL, True, 0.04, "text"),
        (ModelType.SEQUENTIAL, False, 0.06, "text"),
        (ModelType.GENERAL, False, 0.04, "text"),
    ],
)
def test_a_sequential_student_starts_from_texts_that_rank_better_than_popularity(
    kind, recurrent, ndcg, start, monkeypatch
):
    config = {
        "kd": "auto",
        "kd_weight": 1,
        "kd_item_init": "auto",
        "kd_teachers": ["Linear", "Content"],
        "kd_shuffled_teachers": False,
        "MODEL_TYPE": kind,
        "kd_teacher_seed": 0,
    }
    monkeypatch.setattr(item_start, "teacher_data", lambda split, seed: None)
    monkeypatch.setattr(item_start, "is_recurrent", lambda config, split: recurrent)
    known = torch.zeros(300)
    monkeypatch.setattr(item_start, "popularity", lambda data: Ranked(0.05, known))
    ranked = {"Linear": Ranked(0.1, known), "Content": Ranked(ndcg, known)}
    assert item_start.useful_source(config, ranked, None) == start
    assert item_start.useful_source({**config, "kd_item_init": "text"}, ranked, None) == "text"


def test_which_students_are_recurrent(cpu_settings):
    for model, recurrent in (("GRU4Rec", True), ("SASRec", False)):
        config = load_config(model, "tiny", config_dict=cpu_settings(kd="mean"))
        assert item_start.is_recurrent(config, load_split(config)) == recurrent
