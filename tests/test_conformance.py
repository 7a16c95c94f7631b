"""Any RecBole model as a student: one of each kind here, all of them under the mark `slow`."""

import pytest

from tests.conformance import KD_METHODS, STUDENTS, conform, model_names, write_data

# One of each kind of model, loader, loss and trainer, and what its scores come from.
KINDS = {
    "GRU4Rec": "factorised",
    "CORE": "loss",
    "BERT4Rec": "full",
    "TransRec": "pairs",
    "DIEN": "pairs",
    "BPR": "factorised",
    "SGL": "factorised",
    "NeuMF": "pairs",
    "RecVAE": "factorised",
    "DCNV2": "pairs",
    "CKE": "factorised",
    "MKR": "pairs",
}
REFUSED = {"Pop", "Random", "ItemKNN", "EASE", "SLIMElastic", "ADMMSLIM", "NCEPLRec"}
NOT_INSTALLED = {"XGBoost", "LightGBM", "KGAT", "KGIN", "MCCLK"}
BROKEN = {"KSR"}  # RecBole 1.2.0 mixes float64 and float32 there, with or without distillation


# What a student that scores in pairs cannot do, and the word of the refusal.
NOT_IN_PAIRS = {"hinton": "scores of all", "dcd": "ranks first", "rcekd": "ranks first"}
NOT_IN_PAIRS |= dict.fromkeys(("de", "topology", "align"), "compares vectors")
OF_OTHERS = [*NOT_IN_PAIRS, "cd", "unkd", "hetcomp", "diverse", "mean_teacher", "label_smoothing"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("conformance"))


@pytest.mark.parametrize("model", KINDS)
def test_one_of_each_kind(model, data, tmp_path):
    path, outcome = conform(model, data, tmp_path)
    assert path == KINDS[model] and outcome.startswith("ok")


@pytest.mark.parametrize("model", ["MultiDAE", "CFKG"])
def test_a_curriculum_of_users_and_of_rows_beside_triples(model, data, tmp_path):
    assert conform(model, data, tmp_path, kd="prmkd")[1] == "ok"
    log = next((tmp_path / "log").rglob("*.log")).read_text()
    assert "share 0.2000" in log


@pytest.mark.parametrize(("kd", "model"), [(kd, STUDENTS[n % 2]) for n, kd in enumerate(OF_OTHERS)])
def test_ways_of_other_papers(kd, model, data, tmp_path):
    assert conform(model, data, tmp_path, kd)[1] == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("model", STUDENTS)
@pytest.mark.parametrize("kd", KD_METHODS)
def test_every_way(kd, model, data, tmp_path):
    outcome = conform(model, data, tmp_path, kd)[1]
    if model == "DeepFM" and kd in NOT_IN_PAIRS:
        assert NOT_IN_PAIRS[kd] in outcome
    else:
        assert outcome == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("model", [name for _, name in model_names() if name not in {*KINDS, *BROKEN}])
def test_every_model(model, data, tmp_path):
    path, outcome = conform(model, data, tmp_path)
    if model in REFUSED:
        assert "not trained by gradient" in outcome and model in outcome
    elif model in NOT_INSTALLED and path == "-":
        assert "needs" in outcome and "package" in outcome and model in outcome
    else:
        assert outcome.startswith("ok")
