"""Items that came after training get their vectors from their texts."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_tiny
from sklearn.linear_model import Ridge

from recbole_prmkd import UserError, load, recommend, run_recbole_prmkd
from recbole_prmkd.serving.command import serve
from recbole_prmkd.serving.histories import histories_of
from recbole_prmkd.serving.new_items import ridge
from recbole_prmkd.serving.recommendation import TOPK
from recbole_prmkd.serving.scoring import Scorer

HEAD = "item_id:token\ttitle:token_seq\tbrand:token\n"


@pytest.fixture(scope="module")
def trained_runs(tiny_encoder, tmp_path_factory):
    """Students that have started from text; the item file and the interactions are gone afterwards."""
    from conftest import TINY, TINY_TEACHER

    folder = tmp_path_factory.mktemp("text")
    write_tiny(folder / "data")
    shared = {**TINY, **TINY_TEACHER, "kd": "none", "kd_protocol": "ranking", "kd_item_init": "text", "use_gpu": False}
    for model, more in (("SASRec", {}), ("BPR", {}), ("DeepFM", {})):
        settings = {
            "data_path": str(folder / "data"),
            "kd_cache_dir": str(folder / "cache"),
            "kd_text_encoder": str(tiny_encoder),
            "kd_output_dir": str(folder / model),
            "kd_text_fields": ["title", "brand"],
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["pytest"])
            run_recbole_prmkd(model, "tiny", config_dict={**shared, **settings, **more})
    shutil.move(folder / "data", folder / "elsewhere")
    shutil.rmtree(folder / "cache")
    return folder


@pytest.fixture
def file(tmp_path):
    """Two new items, a copy of a known text among them, one item that is known, and one without text."""
    lines = ["new1\tred thing number 6\tb2", 'new2\tround "9 inch', "i3\tanother text\tb0", "new3\t\t"]
    path = tmp_path / "new.tsv"
    path.write_text(HEAD + "\n".join(lines) + "\n")
    return path


def test_ridge_is_that_of_scikit_learn_at_the_best_penalty():
    rng = np.random.default_rng(0)
    inputs, new = rng.normal(size=(60, 7)), rng.normal(size=(5, 7))
    outputs = inputs @ rng.normal(size=(7, 3)) + rng.normal(size=(60, 3)) + 4
    found, explained = ridge(*map(torch.from_numpy, (inputs, outputs, new)))
    centred = inputs - inputs.mean(0)
    largest = np.linalg.eigvalsh(centred.T @ centred)[-1]
    errors = {}
    for penalty in largest * 10.0 ** np.arange(-5, 1.5, 0.5):
        hat = centred @ np.linalg.solve(centred.T @ centred + penalty * np.eye(7), centred.T)
        residual = (np.eye(60) - hat) @ (outputs - outputs.mean(0))
        errors[penalty] = (residual**2).sum() / (60 - 1 - np.trace(hat)) ** 2
    best = min(errors, key=errors.get)
    model = Ridge(alpha=best).fit(inputs, outputs)
    centre, fitted = outputs.mean(0), model.predict(inputs)
    spread = np.linalg.norm(outputs - centre) / np.linalg.norm(fitted - centre)
    np.testing.assert_allclose(found.numpy(), centre + spread * (model.predict(new) - centre), rtol=1e-6)
    left = ((outputs - fitted) ** 2).sum() / ((outputs - centre) ** 2).sum()
    assert explained == pytest.approx(1 - left) and 0.5 < explained < 1 < spread


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_lists_with_new_items(model, trained_runs, file, caplog):
    """What is known is scored as before, and the new items stand where their scores put them."""
    loaded = load(trained_runs / model)
    before = recommend(loaded, users=["u1", "u2"], topk=100)
    lists = recommend(loaded, users=["u1", "u2"], topk=100, new_items=file)
    assert "2 new items from their texts; 1 known ones are left as they are." in caplog.text
    assert "1 new items without text left out: new3" in caplog.text
    new = lists.item_id.isin(["new1", "new2"])
    assert new.sum() == 4
    known = lists[~new].reset_index(drop=True)
    assert known.item_id.tolist() == before.item_id.tolist()
    np.testing.assert_allclose(known.score, before.score, atol=1e-6)
    for _, own in lists.groupby("user_id"):
        assert own.score.is_monotonic_decreasing and own["rank"].tolist() == list(range(1, len(own) + 1))


def test_a_new_item_is_near_the_known_items_with_such_texts(trained_runs, tmp_path):
    """With a table that follows from the texts, the copy of a known text gets the score of the item that has it."""
    loaded = load(trained_runs / "SASRec")
    from recbole_prmkd.serving.new_items import read_text

    text = read_text(trained_runs / "SASRec")
    torch.manual_seed(0)
    table = text.components @ torch.randn(text.components.shape[1], 16, dtype=torch.float64) + 1
    with torch.no_grad():
        loaded.model.item_embedding.weight.copy_(table)
    path = tmp_path / "new.csv"
    path.write_text("item_id,title,brand\ncopy,green thing number 7,b3\n")
    lists = recommend(loaded, topk=100, unseen=False, new_items=path)
    score = lists.pivot(index="user_id", columns="item_id", values="score")
    np.testing.assert_allclose(score["copy"], score["i7"], atol=0.02 * score.std(axis=1).mean())


def test_new_histories_and_a_file_that_goes_on(trained_runs, file, tmp_path):
    """Lists of other new items are not taken for these."""
    output = tmp_path / "lists.csv"
    serve([f"--recommend={trained_runs / 'SASRec'}", f"--new_items={file}", f"--output={output}", "--topk=40"])
    lists = pd.read_csv(output)
    assert set(lists[lists.item_id.str.startswith("new")].item_id) == {"new1", "new2"}
    assert len(lists[lists.item_id == "new1"]) == lists.user_id.nunique()
    loaded = load(trained_runs / "SASRec")
    given = recommend(loaded, histories={"me": ["i1", "i2"]}, topk=100, new_items=file)
    assert {"new1", "new2"} <= set(given.item_id) and len(given) == 30
    assert len(recommend(loaded, users=["u1"])) == TOPK


@pytest.mark.parametrize(
    ("model", "content", "message"),
    [
        ("DeepFM", HEAD + "a\tb\tc\n", "The scores of DeepFM are no product .* leave --new_items out"),
        ("SASRec", "item_id\ttitle\na\tb\n", "has no column brand"),
        ("SASRec", HEAD + "i3\tb\tc\n", r"has no new item with text \(1 are known\)"),
        ("SASRec", HEAD, "has no new item with text"),
        ("SASRec", None, "Cannot read --new_items="),
    ],
)
def test_what_cannot_be_used_is_one_sentence(model, content, message, trained_runs, tmp_path):
    path = tmp_path / "new.item"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        recommend(trained_runs / model, new_items=path)


def test_a_run_without_text_and_another_encoder(runs, trained_runs, file, tiny_encoder, tmp_path):
    with pytest.raises(UserError, match=r"has no item_text\.safetensors.*--kd_item_init=text"):
        recommend(runs / "SASRec", new_items=file)
    with pytest.raises(UserError, match="--new_items is not for --export"):
        serve([f"--export={trained_runs / 'SASRec'}", "--format=weights", f"--new_items={file}"])
    shutil.copytree(trained_runs / "SASRec", tmp_path / "run")
    (tmp_path / "run" / "item_text.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match=r"Cannot read .*item_text\.safetensors"):
        recommend(tmp_path / "run", new_items=file)
    loaded = load(trained_runs / "SASRec")
    shutil.copytree(tiny_encoder, tmp_path / "encoder")
    (tmp_path / "encoder" / "more.txt").write_text("changed")
    loaded.config["kd_text_encoder"] = str(tmp_path / "encoder")
    with pytest.raises(UserError, match="is another one than in training"):
        recommend(loaded, new_items=file)


def test_scores_of_new_items_come_last(trained_runs, file):
    from recbole_prmkd.serving.new_items import WithNewItems

    loaded = load(trained_runs / "SASRec")
    scorer = Scorer(loaded, histories_of([[1, 2], [3]]), known=False)
    users = np.arange(2)
    wide = WithNewItems(scorer, users, trained_runs / "SASRec", file)
    assert wide.item_tokens[-2:] == ["new1", "new2"]
    scores = wide.scores(users)
    assert scores.shape == (2, len(loaded.item_tokens) + 2)
    torch.testing.assert_close(scores[:, :-2], scorer.scores(users))
