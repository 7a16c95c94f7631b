"""Sweeps on a real Ray: two nodes on one machine, nodes and drivers that are killed, winners that are reproduced."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import torch
import yaml
from conftest import write_tiny
from ray.cluster_utils import Cluster

from recbole_prmkd import UserError, run_recbole_prmkd
from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.results.run_folder import read_result
from recbole_prmkd.storage import encoding_jobs
from recbole_prmkd.tune import encode_on, run_sweep
from recbole_prmkd.tune.trial_inputs import make_trial_inputs

ROOT = Path(__file__).parent.parent
SPACE = {"kd_weight": {"loguniform": [0.5, 20]}, "learning_rate": {"loguniform": [0.0005, 0.02]}}
METRIC = "valid mrr@10"
SMALL_RECFORMER = {
    "kd_recformer_max_token_num": 32,
    "kd_recformer_max_item_list_length": 4,
    "kd_recformer_attention_window": 8,
    "kd_recformer_epochs": 1,
    "kd_recformer_stage_two_epochs": 0,
    "kd_recformer_max_rows_per_epoch": 16,
}


@pytest.fixture
def sweep_file(tmp_path):
    """Writes a sweep file of the space above."""

    def write(**more):
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"space": SPACE, "trials": 2, **more}))
        return str(file)

    return write


@pytest.fixture
def two_nodes(monkeypatch):
    """A cluster of a head with one CPU and another node with one; removed afterwards."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def listed(folder):
    return pd.read_csv(Path(folder) / "trials.csv", dtype={"id": str}).set_index("id")


def check_winner(out):
    """best.yaml gives the winner's validation score, exactly; only the winner has seen the test set."""
    trials, folder = listed(out["output_dir"]), Path(out["output_dir"])
    good = trials[trials.status != "failed"]
    assert out["best_valid_score"] == good[METRIC].max()
    assert read_result(folder / "winner").student.valid["mrr@10"] == out["best_valid_score"]
    assert not [column for column in trials if "test" in column]
    again = run_recbole_prmkd(
        config_file_list=[str(folder / "best.yaml")], config_dict={"kd_output_dir": str(folder / "again")}
    )
    assert again["best_valid_score"] == out["best_valid_score"]
    assert again["test_result"] == out["winner"]["test_result"]


@pytest.mark.slow
def test_a_sweep_from_file_to_winner(settings, sweep_file):
    """The whole way on a local Ray, with fixed settings, two trials and their folders."""
    out = run_sweep("BPR", "tiny", None, settings(kd="prmkd"), sweep_file(max_concurrent=1))
    folder, trials = Path(out["output_dir"]), listed(out["output_dir"])
    assert len(trials) == 2 and (trials.status == "finished").all() and trials.error.isna().all()
    assert (trials.seconds > 0).all() and trials["best epoch"].isin([0, 1]).all()
    assert set(SPACE) <= set(trials.columns)
    assert out["best_valid_score"] == trials[METRIC].max() == read_result(folder / "winner").student.valid["mrr@10"]
    one = folder / "trials" / trials.index[0]
    assert list(one.glob("tensorboard/events*")) and list(one.glob("log/**/*.log"))
    assert (folder / "parallel_coordinates.svg").stat().st_size > 1000
    more = run_sweep(resume=str(folder), trials=4)
    again = listed(folder)
    assert len(again) == 4 and again.loc[trials.index].equals(trials) and (again.status == "finished").all()
    assert more["best_valid_score"] == again[METRIC].max() >= out["best_valid_score"]
    assert len({tuple(values) for values in again[list(SPACE)].to_numpy()}) == 4
    check_winner(more)


@pytest.mark.slow
@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_small_space_is_tried_once_each_and_one_trial_diverges(search, settings, sweep_file):
    """Of four settings two have a loss that is NaN: results, not faults."""
    space = {"learning_rate": {"choice": [0.01, 1e30]}, "embedding_size": {"choice": [8, 4]}}
    fixed = settings(kd="none", epochs=6)
    del fixed["embedding_size"]
    out = run_sweep("BPR", "tiny", None, fixed, sweep_file(space=space, trials=9, search=search))
    trials = listed(out["output_dir"])
    assert len(trials) == 4 and len(trials[["learning_rate", "embedding_size"]].drop_duplicates()) == 4
    nan = trials.learning_rate > 1
    assert nan.sum() == 2 and (trials[nan].status == "failed").all() and trials[nan].error.str.contains("nan").all()
    one = Path(out["output_dir"]) / "trials" / trials[nan].index[0]
    assert len(list(one.glob("log/**/*.log"))) == 1


@pytest.mark.slow
def test_failed_trials_are_listed_and_the_others_go_on(settings, sweep_file):
    """A grid, half of which cannot train: each is tried once and listed with its error."""
    space = {"kd_weight": {"choice": [1, 5]}, "loss_type": {"choice": ["CE", "wrong"]}}
    file = sweep_file(space=space, trials=None, search="grid", max_failures=1)
    out = run_sweep("SASRec", "tiny", None, settings(kd="prmkd", train_neg_sample_args=None), file)
    folder, trials = Path(out["output_dir"]), listed(out["output_dir"])
    wrong = trials.loss_type == "wrong"
    assert len(trials) == 4 and wrong.sum() == 2 and (trials[wrong].status == "failed").all()
    assert trials[wrong].error.str.contains("loss_type").all()
    assert (trials[~wrong].status == "finished").all() and trials[~wrong][METRIC].notna().all()
    assert len(list((folder / "trials" / trials[wrong].index[0]).glob("log/**/*.log"))) == 1
    check_winner(out)
    assert (folder / "importance.svg").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("model", ["DeepFM", "LightGCN"])
def test_asha_and_a_node_killed_in_the_middle(model, settings, sweep_file, two_nodes, monkeypatch):
    """Six trials stop early where they are worse; a node dies: what had ended stays, the sweep completes.

    DeepFM's trials take the teacher cache from the object store, as where nodes share no storage.
    """
    if model == "DeepFM":

        def unseen(*given):
            inputs = make_trial_inputs(*given)
            return replace(
                inputs, teachers={name: replace(t, folder=Path("unseen")) for name, t in inputs.teachers.items()}
            )

        monkeypatch.setattr("recbole_prmkd.tune.sweep.make_trial_inputs", unseen)
    file = sweep_file(trials=6, scheduler={"name": "asha", "grace": 2, "reduction": 2}, search="optuna", seed=1)
    fixed = settings(kd="prmkd", epochs=24, stopping_step=50)
    folder = Path(fixed["kd_output_dir"])
    ended = {}

    def kill():
        while not list(folder.glob("trials/*/finished.json")):
            time.sleep(0.1)
        ended.update({path: path.read_text() for path in folder.glob("trials/*/finished.json")})
        two_nodes.remove_node(two_nodes.list_all_nodes[-1], allow_graceful=False)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    out = run_sweep(model, "tiny", None, fixed, file, ray_address=two_nodes.address)
    thread.join(10)
    trials = listed(folder)
    assert len(trials) == 6 and (trials.status == "stopped").any() and (trials.status != "failed").all()
    assert ended
    for path, content in ended.items():
        assert path.read_text() == content and trials.status[path.parent.name] == "finished"
        assert len(list(path.parent.glob("log/**/*.log"))) == 1  # trained once
    check_winner(out)


DRIVER = """
import sys, json
sys.argv = sys.argv[:1]
from recbole_prmkd.tune import run_sweep
run_sweep("BPR", "tiny", None, json.loads(sys.stdin.read()), {file!r})
"""


@pytest.mark.slow
def test_resume_after_the_driver_was_killed(settings, sweep_file, tmp_path):
    """kill -9, then `--tune_resume=FOLDER`: what had finished is not trained again."""
    import json

    file = sweep_file(trials=6, seed=1, max_concurrent=1)
    fixed = settings(kd="prmkd", epochs=40, stopping_step=50)
    folder = Path(fixed["kd_output_dir"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER.format(file=file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        env=environment,
        text=True,
    )
    driver.stdin.write(json.dumps(fixed))
    driver.stdin.close()
    until = time.time() + 200
    while len(list(folder.glob("trials/*/finished.json"))) < 2:
        assert driver.poll() is None and time.time() < until
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    time.sleep(3)  # its Ray dies after it
    finished = {path.parent: path.read_text() for path in folder.glob("trials/*/finished.json")}
    assert 2 <= len(finished) < 6
    logs = {trial: sorted(trial.glob("log/**/*.log")) for trial in finished}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_recbole_prmkd.py"), f"--tune_resume={folder}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trials = listed(folder)
    assert len(trials) == 6 and (trials.status == "finished").all()
    for trial, content in finished.items():
        assert (trial / "finished.json").read_text() == content
        assert sorted(trial.glob("log/**/*.log")) == logs[trial]
    assert read_result(folder / "winner").student.valid["mrr@10"] == trials[METRIC].max()
    with pytest.raises(UserError, match="epochs"):
        run_sweep("BPR", "tiny", None, {**fixed, "epochs": 3}, file, resume=True)


@pytest.mark.slow
def test_an_interrupted_sweep_names_no_winner(settings, sweep_file, tmp_path):
    """Ctrl-C after the first trial: exit code 130 and how to go on; no best.yaml, and no test of anything."""
    fixed = settings(kd="prmkd", epochs=100, stopping_step=100)
    folder = Path(fixed.pop("kd_output_dir"))
    (tmp_path / "fixed.yaml").write_text(yaml.safe_dump(fixed))
    files = [f"--tune={sweep_file(trials=4, max_concurrent=1)}", f"--config_files={tmp_path / 'fixed.yaml'}"]
    options = ["--model=BPR", "--dataset=tiny", f"--kd_output_dir={folder}", *files]
    driver = subprocess.Popen(
        [sys.executable, str(ROOT / "run_recbole_prmkd.py"), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
    )
    until = time.time() + 200
    while not list(folder.glob("trials/*/finished.json")):
        assert driver.poll() is None and time.time() < until
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=200)
    assert driver.returncode == 130 and f"--tune_resume={folder} goes on" in said
    assert not (folder / "best.yaml").exists() and not (folder / "winner").exists()


def cache_of(folder):
    files = [file for file in folder.rglob("*") if file.suffix in {".npy", ".json", ".safetensors"}]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["UniSRec", "Recformer"])
def test_the_cache_from_ray_data_equals_the_local_one(teacher, settings, tmp_path, two_nodes, tiny_encoder):
    """Byte for byte, arrays, weights and hashes; the manifests differ in seconds alone."""
    made = []
    for name, address in (("local", None), ("ray", two_nodes.address)):
        folder = tmp_path / name
        more = {"kd_text_encoder": str(tiny_encoder), **SMALL_RECFORMER} if teacher == "Recformer" else {}
        config = load_config(
            "SASRec",
            "tiny",
            config_dict=settings(
                kd="prmkd",
                kd_teachers=[teacher],
                data_path=str(write_tiny(folder / "data")),
                kd_cache_dir=str(folder / "cache"),
                kd_teacher_dir=str(folder / "teachers"),
                **more,
            ),
        )
        with encode_on(address):
            prepare(config, Steps())
        made.append(cache_of(folder))
    local, spread = made
    arrays = {name for name in local if name.endswith(("npy", "safetensors"))}
    # Teacher cache of items and examples, teacher weights; text vectors where the teacher reads no tokens.
    assert local.keys() == spread.keys() and len(arrays) == (3 if teacher == "Recformer" else 4)
    for name in local:
        left, right = local[name], spread[name]
        if not name.endswith("manifest.json"):
            assert left == right, name
            continue
        left, right = yaml.safe_load(left), yaml.safe_load(right)
        assert left["identity"] == right["identity"] and left["files"] == right["files"]


@pytest.mark.slow
def test_a_lost_worker_costs_only_its_shard(tmp_path, two_nodes):
    """One actor dies at batch 21: what the others did is not done again, and the result is whole and in order."""
    batches = list(torch.arange(160).split(4))
    died = tmp_path / "died"

    def encode(index):
        number = int(index[0]) // 4
        with (tmp_path / f"batch-{number}").open("a") as file:
            file.write("x")
        if number == 21 and not died.exists():
            died.touch()
            os._exit(1)
        return np.stack([index.numpy(), index.numpy() ** 2], axis=1)

    with (
        encode_on(two_nodes.address),
        encoding_jobs.resumable(tmp_path / "cache", "numbers", {}, 160, label="Numbers", dtype=np.int64) as work,
    ):
        array = np.array(work.fill(batches, encode))
    assert died.exists() and (array == np.stack([np.arange(160), np.arange(160) ** 2], axis=1)).all()
    again = [n for n in range(40) if len((tmp_path / f"batch-{n}").read_text()) > 1]
    assert again and len(again) <= 8 and 21 in again


@pytest.mark.slow
def test_a_population_takes_over_students_and_settings(settings, sweep_file, tmp_path):
    """PBT: the worst go on from a copy of the best, at its epoch, with settings of their own."""
    scheduler = {"name": "pbt", "interval": 2, "share": 0.5}
    space = {"learning_rate": {"loguniform": [0.00001, 0.05]}, "kd_weight": {"uniform": [1, 5]}}
    file = sweep_file(space=space, trials=2, scheduler=scheduler, seed=1)
    out = run_sweep("BPR", "tiny", None, settings(kd="prmkd", epochs=40, stopping_step=50), file)
    folder, trials = Path(out["output_dir"]), listed(out["output_dir"])
    assert len(trials) == 2 and (trials.status != "failed").all()
    assert max(len(list(trial.glob("log/**/*.log"))) for trial in (folder / "trials").iterdir()) > 1
    takeovers = [line for file in (folder / "ray").glob("pbt_policy_*.txt") for line in file.read_text().splitlines()]
    assert takeovers
    assert "PBT" in (folder / "best.yaml").read_text()
