"""Every file that a later command reads: no flipped bit of it is used. `test_store`, `test_encoding_jobs` and
`test_pretrained_card` have those of the caches and teachers.
"""

import json
import os
import shutil
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from ray import tune
from recbole.utils import init_seed

from recbole_prmkd import UserError
from recbole_prmkd.compare.cost import read_costs
from recbole_prmkd.compare.gather import gather
from recbole_prmkd.compare.grid import Grid
from recbole_prmkd.compare.plan import cell_job, result_of
from recbole_prmkd.preparation import Steps, prepare
from recbole_prmkd.recbole_host import progress
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.results.resume import Progress
from recbole_prmkd.results.run_folder import RESULT, output_folder, read_result, write_result
from recbole_prmkd.storage import disk
from recbole_prmkd.storage.json_files import write_json, write_sealed
from recbole_prmkd.tune.outcome import read_winner, write_winner
from recbole_prmkd.tune.plan import Plan, read_plan, write_plan
from recbole_prmkd.tune.settings import SweepSettings
from recbole_prmkd.tune.trial import failure, finished, run_trial

LARGE = 1000  # bytes: of larger files 200 random bits


def with_flipped_bits(file, bits=None):
    """Writes the file with each bit flipped in turn, or these; at the end the file is what it was."""
    content = file.read_bytes()
    if bits is None:
        bits = range(8 * len(content))
        bits = np.random.default_rng(0).choice(bits, 200, replace=False) if len(content) > LARGE else bits
    for bit in map(int, bits):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(changed))
        yield bit
    file.write_bytes(content)


SWEEP = SweepSettings.model_validate({"space": {"learning_rate": {"uniform": [0.001, 0.1]}}})
PLAN = Plan(model="BPR", dataset="tiny", settings={"epochs": 2, "seed": 1}, sweep=SWEEP, data="0123")


def test_the_plan_of_a_sweep(tmp_path):
    write_plan(PLAN, tmp_path)
    for bit in with_flipped_bits(tmp_path / "sweep.json"):
        with suppress(UserError):
            assert read_plan(tmp_path) == PLAN, bit
    assert read_plan(tmp_path) == PLAN


def costs_in(folder):
    return read_costs(folder / "cost.json")


@pytest.mark.parametrize(
    ("name", "read", "content"),
    [
        ("cost.json", costs_in, {"students": {"none": {"ms": 3.5}}, "teachers": {}}),
        ("finished.json", finished, {"best_score": 0.25, "epoch": 1, "settings": {"learning_rate": 0.01}}),
        ("failed.json", failure, {"error": "loss is NaN", "settings": {"learning_rate": 0.01}}),
    ],
)  # fmt: skip
def test_measurements_and_trials(name, read, content, tmp_path):
    write_sealed(tmp_path / name, content)
    for bit in with_flipped_bits(tmp_path / name):
        assert read(tmp_path) is None, bit
    assert read(tmp_path) == content
    (tmp_path / name).write_text(json.dumps(content))  # an earlier version's
    assert read(tmp_path) == content


def test_the_best_settings_that_a_comparison_takes(tmp_path):
    line = {"id": "7", "valid mrr@10": 0.5, "best epoch": 1, "learning_rate": 0.0123}
    base = {"valid_metric": "MRR@10"}
    file = write_winner(line, PLAN, base, tmp_path)
    content = {"model": "BPR", "dataset": "tiny", **PLAN.settings, "learning_rate": 0.0123}
    assert yaml.safe_load(file.read_text()) == content == read_winner(tmp_path)
    for bit in with_flipped_bits(file):
        found = read_winner(tmp_path)
        assert found is None or content.items() <= found.items(), bit  # a damaged comment changes nothing
    file.write_text(yaml.safe_dump(content))  # an earlier version's
    assert read_winner(tmp_path) == content
    file.write_text("")
    assert read_winner(tmp_path) is None


@pytest.fixture
def cell(tmp_path, made_up_run):
    """A finished cell of a comparison: its grid, its job and its result."""
    grid = Grid(("a",), ("BPR",), ("none",), (1,), {})
    job = cell_job(grid, grid.cells()[0], tmp_path)
    job.write()
    made = made_up_run("a", "BPR", "none", 1, 0.1)
    write_result(job.folder, made)
    (job.folder / "BPR.pth").write_bytes(bytes(range(50)))
    np.savez(job.folder / "test_ranks.npz", ranks=np.arange(5))
    job.note_files()
    assert result_of(job) == made
    return SimpleNamespace(grid=grid, job=job, result=made, folder=tmp_path)


@pytest.mark.parametrize("name", [RESULT, "BPR.pth", "test_ranks.npz", "job.json"])
def test_a_cell_of_a_comparison(name, cell):
    """Trained again, and left out of a report that is written meanwhile."""
    for bit in with_flipped_bits(cell.job.folder / name):
        found = result_of(cell.job)
        assert found is None or (name == "job.json" and found == cell.result), bit
    assert result_of(cell.job) == cell.result
    (cell.job.folder / "BPR.pth").unlink()  # by somebody who needs the room
    assert result_of(cell.job) == cell.result
    file = cell.job.folder / RESULT
    file.write_text(file.read_text().replace('"ndcg@10": 0.1', '"ndcg@10": 0.9'))
    assert result_of(cell.job) is None and gather(cell.grid, cell.folder).missing == cell.grid.cells()
    cell.job.write()  # for the process that trains it again
    assert not file.exists()


def test_what_a_run_takes_from_an_older_result(tmp_path, made_up_run):
    """The name of a checkpoint beside it, which goes with the result; anything else at most ends in one sentence."""
    made = made_up_run("a", "BPR", "mean", 1, 0.1)
    made.student.checkpoint = "BPR.pth"
    for folder in ("old", "out"):
        (tmp_path / folder).mkdir()
    write_result(tmp_path / "old", made)
    names, first = set(), (tmp_path / "old" / RESULT).read_bytes().index(b'"checkpoint"')
    for _ in with_flipped_bits(tmp_path / "old" / RESULT, range(8 * first, 8 * (first + 30))):
        with suppress(UserError):
            names.add(read_result(tmp_path / "old").student.checkpoint)
    assert len(names) > 9 and all(os.path.basename(name) == name and name.endswith(".pth") for name in names)
    for _ in with_flipped_bits(tmp_path / "old" / RESULT, range(0, 8 * first, 99)):
        shutil.copy(tmp_path / "old" / RESULT, tmp_path / "out" / RESULT)
        (tmp_path / "out" / "notes.txt").touch()
        with output_folder(tmp_path / "out") as work:
            (work / RESULT).write_text("new")
        assert (tmp_path / "out" / RESULT).read_text() == "new" and (tmp_path / "out" / "notes.txt").exists()


def test_the_state_of_a_killed_training(cpu_settings, tmp_path):
    config = load_config("BPR", "tiny", config_dict=cpu_settings(kd="none"))
    prepared, folder = prepare(config, Steps()), tmp_path / "unfinished"
    folder.mkdir()

    kept = Progress(config, prepared, folder)
    trainer = SimpleNamespace(cur_step=0, saved_model_file=str(folder / "BPR.pth"))
    (folder / "BPR.pth").write_bytes(bytes(range(100)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "captured", lambda *_: {"epoch": 3})
        kept.keep(trainer, None, 3)
    shutil.copytree(folder, tmp_path / "kept")
    assert kept.load(saved=False) == {"epoch": 3}
    for name in [file.name for file in folder.glob("progress*")]:
        for bit in with_flipped_bits(tmp_path / "kept" / name):
            shutil.copytree(tmp_path / "kept", folder, dirs_exist_ok=True)
            assert kept.load(saved=False) is None, (name, bit)


def test_the_checkpoint_of_a_trial(cpu_settings, tmp_path, monkeypatch):
    """A damaged one lets the trial begin again; its scores are the same."""
    reports, kept = [], tmp_path / "kept"

    def report(metrics, checkpoint=None):
        reports.append(metrics)
        if metrics["epoch"] == 0:
            with checkpoint.as_directory() as folder:
                shutil.copytree(folder, kept, dirs_exist_ok=True)

    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "7"))
    monkeypatch.setattr(tune, "get_checkpoint", lambda: tune.Checkpoint.from_directory(kept) if reports else None)
    monkeypatch.setattr(tune, "report", report)
    fixed = {key: value for key, value in cpu_settings(kd="none").items() if key != "kd_output_dir"}
    plan = PLAN.model_copy(update={"settings": fixed})

    def prepared(config):
        init_seed(config["seed"], True)
        return prepare(config, Steps())

    inputs = SimpleNamespace(prepared=prepared)

    def epochs():
        shutil.rmtree(tmp_path / "trials", ignore_errors=True)
        before = len(reports)
        run_trial({"learning_rate": 0.01}, plan, inputs, tmp_path)
        return [each["epoch"] for each in reports[before:]]

    assert epochs() == [0, 1] and epochs() == [1]
    for name in ("checksum.json", "progress.pt"):
        content = (kept / name).read_bytes()
        changed = bytearray(content)
        changed[len(content) // 2] ^= 4
        (kept / name).write_bytes(bytes(changed))
        assert epochs() == [0, 1]
    assert len({each["best_score"] for each in reports if each["epoch"] == 1}) == 1


def test_what_a_kill_leaves_half_written_goes_a_day_later(tmp_path):
    for name in (".part-a.json-1", ".part-b.json-1"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".part-a.json-2").touch()
    write_json(tmp_path / "a.json", {})
    assert sorted(file.name for file in tmp_path.iterdir()) == [".part-a.json-2", ".part-b.json-1", "a.json"]
    disk.remove_stale(tmp_path, ".part-*", disk.STALE_SECONDS)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".part-a.json-2", "a.json"]
