"""Real runs: ranks that give RecBole's own metrics, and a small grid that goes on where it was."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY_TEACHER
from torch.utils.data import DataLoader

import recbole_prmkd
from recbole_prmkd import quick_start, run_recbole_prmkd
from recbole_prmkd.compare import cost
from recbole_prmkd.compare.user_gains import ndcg_of_ranks
from recbole_prmkd.recbole_host.config import load_config


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "LightGCN", "DeepFM"])
def test_ranks_give_the_metrics_of_the_same_run(model, settings, tmp_path):
    run = run_recbole_prmkd(
        model, "tiny", config_dict=settings(kd="none", kd_protocol="ranking", kd_save_ranks=True, epochs=1)
    )
    ranks = np.load(tmp_path / "out" / "test_ranks.npz")
    student = run["result"]["student"]
    for part, rank in (("test", ranks["rank"]), ("test_unseen", ranks["rank_unseen"])):
        assert len(rank) == run["result"]["dataset"]["test_rows"]
        assert student[part]["hit@10"] == pytest.approx((rank <= 10).mean(), abs=1e-4)
        assert student[part]["ndcg@10"] == pytest.approx(ndcg_of_ranks(rank).mean(), abs=1e-4)
    # By hand from the file: each user's lines but the last one, and training examples of each target.
    lines = [line.split("\t")[:2] for line in (Path(settings()["data_path"]) / "tiny" / "tiny.inter").open()][1:]
    per_user = {}
    for user, item in lines:
        per_user.setdefault(user, []).append(item)
    assert sorted(ranks["history"]) == sorted(len(items) - 1 for items in per_user.values())
    assert (ranks["rank_unseen"] <= ranks["rank"]).all()
    assert student["valid_scores"] and run["result"]["peak_memory_mb"] > 50


def test_no_ranks_unless_asked_for(settings, tmp_path):
    run_recbole_prmkd("BPR", "tiny", config_dict=settings(kd="none", epochs=1))
    assert not (tmp_path / "out" / "test_ranks.npz").exists()


def test_serving_is_timed_for_students_teachers_and_the_ensemble(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "BUDGET", 0.01)
    two = {"kd_teachers": ["UniSRec", "UniSRec_2"], "kd_unisrec_2_seed": 7}
    two |= {key.replace("unisrec", "unisrec_2"): value for key, value in TINY_TEACHER.items()}
    given = settings(kd="mean", epochs=1, **two)
    run = run_recbole_prmkd("BPR", "tiny", config_dict=given)
    config = load_config("BPR", "tiny", config_dict=given)
    stored = {kd: (config, tmp_path / "out" / "BPR.pth") for kd in ("none", "mean")}
    cost.measure_costs(config, stored, tmp_path / "cost.json", ensemble=True)
    measured = cost.read_costs(tmp_path / "cost.json")
    together, teachers = measured["students"]["ensemble"], measured["teachers"]
    assert set(teachers) == {"UniSRec", "UniSRec_2"} and together["users"] == run["result"]["dataset"]["test_rows"]
    assert all(entry["low"] <= entry["ms"] <= entry["high"] for entry in (together, *teachers.values()))
    assert together["ratio"] > 0
    assert together["parameters"] == sum(entry["parameters"] for entry in teachers.values())
    assert measured["students"]["mean"]["bytes"] == measured["students"]["none"]["bytes"] < together["bytes"]


@pytest.fixture
def compare(settings, tmp_path):
    """Run a small comparison on the command line; returns the finished process."""
    given = settings(kd_teachers=["Vectors"], epochs=1)
    rng = np.random.default_rng(0)
    for part, sign, number in (("item", "i", 30), ("user", "u", 40)):
        names = np.array([f"{sign}{n}" for n in range(number)])
        feat = rng.standard_normal((number, 4)).astype("f4")
        np.savez(tmp_path / f"{part}s.npz", feat=feat, **{f"{part}_id": names})
        given[f"kd_vectors_{part}s"] = str(tmp_path / f"{part}s.npz")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(given))
    home = Path(recbole_prmkd.__file__).parent.parent

    def run(*options):
        arguments = ["--compare=none,mean", "--models=BPR", "--datasets=tiny", "--seeds=2", *options]
        command = [sys.executable, str(home / "run_recbole_prmkd.py"), f"--config_files={tmp_path / 'config.yaml'}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(home)}
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
        )

    return run


@pytest.mark.slow
def test_a_comparison_and_its_way_on(compare, tmp_path):
    done = compare()
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "out"
    assert f"Report: {out / 'report.html'}" in done.stdout
    cells = sorted(out.glob("tiny/BPR/*/*/result.json"))
    assert [str(cell.parent.relative_to(out)) for cell in cells] == [
        f"tiny/BPR/{kd}/{seed}" for kd in ("mean", "none") for seed in (2020, 2021)
    ]
    runs = [json.loads(cell.read_text()) for cell in cells]
    assert {run["config"]["kd_teacher_seed"] for run in runs} == {2020}
    assert all(step["reused"] for run in runs for name, step in run["steps"].items() if "Vectors" in name)
    cost = json.loads((out / "tiny" / "BPR" / "cost.json").read_text())["students"]
    assert cost["mean"]["bytes"] == cost["none"]["bytes"] and cost["mean"]["parameters"] == cost["none"]["parameters"]
    # One cell is lost and cannot be written: nothing else is run again, and the report says what is missing.
    kept = {cell: cell.stat().st_mtime_ns for cell in cells}
    cells[0].unlink()
    (cells[0].parent / "unfinished").touch()
    done = compare()
    assert done.returncode == 1 and "BPR on tiny, mean, seed 2020: " in done.stderr
    assert "unfinished is no folder" in done.stderr
    assert "job.log" in done.stderr and "Without a result (1)" in (out / "report.html").read_text()
    (cells[0].parent / "unfinished").unlink()
    done = compare("--seeds=2020,2021")
    assert done.returncode == 0 and "Without a result" not in (out / "report.html").read_text()
    assert [cell for cell in cells if cell.stat().st_mtime_ns != kept[cell]] == [cells[0]]
    # Other settings are another comparison.
    done = compare("--epochs=2")
    assert done.returncode == 1 and "(epochs)" in done.stderr


def test_nothing_reads_the_test_loader_before_training_has_ended(settings, monkeypatch):
    """Teachers, their cache, curriculum, stopping and the choice of the best epoch do without the test examples."""
    loaders, ended, read = [], [], []
    prepare, train, iterate = quick_start.prepare, quick_start.train, DataLoader.__iter__

    def noting(*arguments):
        prepared = prepare(*arguments)
        loaders.append(prepared.split.test_data)
        return prepared

    def ending(*arguments, **more):
        trained = train(*arguments, **more)
        ended.append(True)
        return trained

    def reading(loader):
        if any(loader is test for test in loaders):
            read.append(bool(ended))
        return iterate(loader)

    monkeypatch.setattr(quick_start, "prepare", noting)
    monkeypatch.setattr(quick_start, "train", ending)
    monkeypatch.setattr(DataLoader, "__iter__", reading)
    run_recbole_prmkd("SASRec", "tiny", config_dict=settings(kd="prmkd", kd_save_ranks=True))
    assert read == [True, True]  # the evaluation, and the ranks
