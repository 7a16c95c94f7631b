"""A trained student comes back without its data set: the same scores, the same metrics, and no pickle."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from trained import FAMILIES, SMALL, trained

from recbole_prmkd import UserError, export, load, recommend, run_recbole_prmkd
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.results.run_folder import read_result
from recbole_prmkd.serving.scoring import Scorer


@pytest.mark.parametrize("model", FAMILIES)
def test_metrics_are_those_of_the_run(runs, model):
    """Ranking, coverage and popularity, on validation and test, without the data set."""
    student = read_result(runs / model).student
    found = load(runs / model).evaluate()
    for part in ("valid", "test", "valid_unseen", "test_unseen"):
        assert found[part] == pytest.approx(getattr(student, part), abs=1e-6), part
    if model != "CKE":
        assert {"itemcoverage@5", "averagepopularity@5"} <= {*found["test"]}


@pytest.mark.parametrize("model", FAMILIES)
def test_scores_are_those_of_the_model_built_from_the_data_set(runs, model):
    """RecBole's own way: the data set is read again, and the checkpoint loaded into a new model."""
    from recbole.utils import get_model, init_seed

    settings = {**SMALL, **FAMILIES[model], "data_path": str(runs / "elsewhere")}
    config = load_config(model, "shop", config_dict=settings)
    init_seed(config["seed"], True)
    split = load_split(config)
    init_seed(config["seed"], True)
    stock = get_model(model)(config, split.train_data._dataset).eval()
    checkpoint = torch.load(runs / model / f"{model}.pth", weights_only=False)
    stock.load_state_dict(checkpoint["state_dict"])
    loaded = load(runs / model)
    users = np.arange(1, 6)
    scorer = Scorer(loaded, loaded.histories, known=True)
    ours = scorer.scores(users)
    scorer.model = stock
    torch.testing.assert_close(ours, scorer.scores(users), rtol=0, atol=1e-6)


def test_checkpoint_runs_no_code(runs, tmp_path):
    """A pickle in the place of the checkpoint that would write a file: nothing of it happens."""
    folder = shutil.copytree(runs / "BPR", tmp_path / "run")

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    content = torch.load(folder / "BPR.pth", weights_only=False)
    torch.save({**content, "config": Evil()}, folder / "BPR.pth", pickle_protocol=4)
    assert load(folder).name == "BPR"
    torch.save({**content, "state_dict": {**content["state_dict"], "more": Evil()}}, folder / "BPR.pth")
    with pytest.raises(UserError, match="more than weights"):
        load(folder)
    assert not (tmp_path / "written").exists()


def test_another_process_may_read_weights_only(runs, tmp_path):
    """The file of --format=weights needs no torch.load at all."""
    (file,) = export(runs / "LightGCN", "weights", tmp_path / "student.safetensors")
    code = (
        "import torch, sys\n"
        "def refuse(*a, **k): raise AssertionError('torch.load')\n"
        "torch.load = refuse\n"
        "import recbole_prmkd\n"
        f"lists = recbole_prmkd.recommend({str(file)!r}, users=['u1'], topk=3)\n"
        "print(lists.item_id.tolist())\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(recommend(runs / "LightGCN", users=["u1"], topk=3).item_id.tolist())


def changed(file, **changes):
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = {**opened.metadata(), **changes}
    save_file(load_file(file), file, metadata)


def damaged(file):
    tensors = load_file(file)
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    name = next(name for name in tensors if name.endswith("item_id"))
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "data.safetensors").unlink(), "no data.safetensors"),
        (lambda folder: (folder / "data.safetensors").write_bytes(b"x" * 50), "as safetensors"),
        (lambda folder: changed(folder / "data.safetensors", recbole_prmkd=json.dumps({"schema": "x"})), "damaged"),
        (lambda folder: damaged(folder / "data.safetensors"), "damaged"),
        (lambda folder: save_file({"a": torch.ones(2)}, folder / "data.safetensors"), "holds no model"),
        (lambda folder: (folder / "result.json").unlink(), "result.json"),
        (lambda folder: (folder / "BPR.pth").unlink(), "no checkpoint"),
        (lambda folder: (folder / "BPR.pth").write_bytes(b"x" * 50), "BPR.pth is damaged"),
        (shutil.rmtree, "There is no"),
    ],
)
def test_incomplete_folder_gives_one_sentence(runs, tmp_path, spoil, words):
    folder = shutil.copytree(runs / "BPR", tmp_path / "run")
    spoil(folder)
    with pytest.raises(UserError, match=words) as raised:
        load(folder)
    assert str(raised.value).endswith(".") and "\n" not in str(raised.value)


def test_unsaved_student_keeps_no_data(runs, tmp_path):
    settings = {**SMALL, "data_path": str(runs / "elsewhere"), "kd_output_dir": str(tmp_path / "run")}
    run_recbole_prmkd("BPR", "shop", config_dict=settings, saved=False)
    assert not (tmp_path / "run" / "data.safetensors").exists()


def test_later_run_takes_the_place_of_an_earlier_ones_data(runs, tmp_path):
    """Two students in one folder, one after the other: the second one's data are there, and no mixture."""
    folder = trained("BPR", runs / "elsewhere", tmp_path / "run")
    trained("SASRec", runs / "elsewhere", folder)
    assert load(folder).name == "SASRec"


def test_model_of_ones_own_is_named_again(runs, tmp_path, monkeypatch):
    """In a new process RecBole knows no such class, and no name in a file imports anything."""
    from recbole.model.general_recommender import BPR

    class Mine(BPR):
        pass

    settings = {**SMALL, "data_path": str(runs / "elsewhere"), "kd_output_dir": str(tmp_path / "run")}
    run_recbole_prmkd(Mine, "shop", config_dict=settings)
    monkeypatch.delitem(sys.modules, "recbole.model.general_recommender.mine")
    with pytest.raises(UserError, match=r"a model of your own: .*--model=package.module:Mine"):
        load(tmp_path / "run")
    with pytest.raises(UserError, match="The model is a Mine, not a BPR"):
        load(tmp_path / "run", model=BPR)
    assert isinstance(load(tmp_path / "run", model=Mine).model, Mine)
