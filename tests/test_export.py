"""What other programs read of a trained student: vectors, one file of weights, ONNX."""

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest
from trained import FAMILIES, SMALL, trained

from recbole_prmkd import UserError, export, load, recommend, run_recbole_prmkd
from recbole_prmkd.serving.command import serve
from recbole_prmkd.serving.exports import training_histories
from recbole_prmkd.serving.scoring import Scorer

MORE = {"BERT4Rec": {"train_neg_sample_args": None}, "CORE": {"train_neg_sample_args": None}, "FPMC": {}}
MORE["GRU4Rec"] = MORE["CORE"]


@pytest.fixture(scope="module")
def more_runs(runs, tmp_path_factory):
    """The same runs, and those of further sequential students."""
    folder = tmp_path_factory.mktemp("more")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])
        for model, settings in MORE.items():
            trained(model, runs / "elsewhere", folder / model, **settings)
    return lambda model: (folder if model in MORE else runs) / model


@pytest.mark.parametrize("model", ["SASRec", "BPR", "LightGCN", "MultiVAE", "CKE", *MORE])
def test_products_of_vectors_are_the_scores(more_runs, model, tmp_path):
    """Also where the model divides by a temperature (CORE), adds a bias (BERT4Rec) or a second product (FPMC)."""
    loaded = load(more_runs(model))
    files = export(loaded, "vectors", tmp_path)
    assert [file.name for file in files] == ["items.npz", "items.parquet", "users.npz", "users.parquet"]
    items, users = np.load(tmp_path / "items.npz"), np.load(tmp_path / "users.npz")
    assert items["item_id"].tolist() == loaded.item_tokens[1:]
    numbers = np.array([loaded.user_tokens.index(token) for token in users["user_id"]])
    scores = Scorer(loaded, loaded.histories, known=True).scores(numbers)[:, 1:].numpy()
    np.testing.assert_allclose(users["feat"] @ items["feat"].T, scores, atol=1e-4)
    table = pd.read_parquet(tmp_path / "users.parquet")
    assert table.user_id.tolist() == users["user_id"].tolist()
    np.testing.assert_array_equal(np.stack(table.vector), users["feat"])


def test_scores_without_vectors_give_one_sentence(runs, tmp_path):
    with pytest.raises(UserError, match=r"DeepFM are no product .* --format=weights"):
        export(runs / "DeepFM", "vectors", tmp_path / "vectors")
    assert not (tmp_path / "vectors").exists()


def test_vectors_of_training_histories_alone(runs, tmp_path):
    """No validation or test item has a part in them, so that a teacher may read them."""
    loaded = load(runs / "SASRec")
    training, whole = training_histories(loaded), loaded.histories
    for user in range(1, 6):
        assert training.items[slice(*training.start[user : user + 2])].tolist() == (
            whole.items[slice(*whole.start[user : user + 2])][:-2].tolist()
        )
    export(loaded, "vectors", tmp_path, history="train")
    numbers = np.flatnonzero(training.lengths > 0)
    scores = Scorer(loaded, training, known=True).scores(numbers)[:, 1:].numpy()
    users, items = np.load(tmp_path / "users.npz")["feat"], np.load(tmp_path / "items.npz")["feat"]
    np.testing.assert_allclose(users @ items.T, scores, atol=1e-4)


def test_student_teaches_the_next_one(runs, tmp_path):
    """The teacher Vectors reads the files as they are."""
    export(runs / "SASRec", "vectors", tmp_path / "vectors", history="train")
    settings = {
        **SMALL,
        "kd": "mean",
        "kd_teachers": ["Vectors"],
        "kd_vectors_items": str(tmp_path / "vectors" / "items.npz"),
        "kd_vectors_users": str(tmp_path / "vectors" / "users.npz"),
        "data_path": str(runs / "elsewhere"),
        "kd_cache_dir": str(tmp_path / "cache"),
        "kd_teacher_dir": str(tmp_path / "teachers"),
        "kd_output_dir": str(tmp_path / "run"),
        "kd_teacher_check": "off",
    }
    run_recbole_prmkd("BPR", "shop", config_dict=settings)
    assert recommend(tmp_path / "run", users=["u1"], topk=2).item_id.tolist()


def test_model_without_weights_is_one_file(runs, tmp_path):
    """Pop has no trained weight: its counts stand beside them."""
    folder = trained("Pop", runs / "elsewhere", tmp_path / "run")
    (file,) = export(folder, "weights")
    pd.testing.assert_frame_equal(recommend(file, topk=4), recommend(folder, topk=4))


@pytest.mark.parametrize("model", FAMILIES)
def test_weights_are_one_file(runs, model, tmp_path):
    (file,) = export(runs / model, "weights", tmp_path / "student.safetensors")
    pd.testing.assert_frame_equal(recommend(file, topk=4), recommend(runs / model, topk=4))
    assert load(file).evaluate() == load(runs / model).evaluate()


@pytest.mark.parametrize("model", ["SASRec", "BPR", "LightGCN", "MultiVAE", "GRU4Rec"])
def test_onnx_scores_are_the_models(more_runs, model, tmp_path):
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    loaded = load(more_runs(model))
    (file,) = export(loaded, "onnx", tmp_path / "student.onnx")
    session = runtime.InferenceSession(str(file))
    scorer, users = Scorer(loaded, loaded.histories, known=True), np.arange(1, 8)  # another batch than the export's
    batch = scorer.interaction(users).interaction
    if model == "MultiVAE":
        history = np.zeros((len(users), scorer.n_items), np.float32)
        history[tuple(part.numpy() for part in loaded.histories.pairs(users))] = 1
        batch = {"history": history}
    given = {each.name: np.asarray(batch[each.name]) for each in session.get_inputs()}
    found = session.run(None, given)[0]
    np.testing.assert_allclose(found[:, 1:], scorer.scores(users)[:, 1:].numpy(), atol=1e-4)


def test_onnx_without_its_packages_names_the_extra(runs, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *of: None if "onnx" in name else find(name, *of))
    with pytest.raises(UserError, match=r"recbole_prmkd\[onnx\]"):
        export(runs / "BPR", "onnx", tmp_path / "student.onnx")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--export needs a format"),
        (["--format=pickle"], "--format=pickle: write one of vectors, weights, onnx"),
        (["--format=weights", "--output=student.pth"], "ends in .safetensors"),
        (["--format=weights", "--history=train"], "--history is for --format=vectors"),
        (["--format=vectors", "--history=half"], "write one of all, train"),
        (["--format=vectors", "--topk=3"], "--topk is not for --export"),
        (["--format=vectors", "--output=setup.py"], "is a file: name a folder"),
    ],
)
def test_command_line_refuses_in_one_sentence(runs, arguments, words):
    with pytest.raises(UserError, match=words):
        serve([f"--export={runs / 'BPR'}", *arguments])


def test_command_line(runs, tmp_path, capsys):
    serve([f"--export={runs / 'BPR'}", "--format=weights", f"--output={tmp_path / 'new' / 'student.safetensors'}"])
    assert capsys.readouterr().out == f"Written: {tmp_path / 'new' / 'student.safetensors'}\n"
