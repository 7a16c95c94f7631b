"""A run, a pre-training, a comparison and a sweep, killed at their file-system steps: the same command, the same bytes.

`kill_points` says what a step is. Times, and the logs and curves that carry them, are left out.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import kill_points
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY, TINY_TEACHER, write_tiny

# Times and memory, and what hangs on them; the checkout, in which one may work meanwhile.
_FREE = {
    "commit",
    "files",
    "seconds",
    "train_seconds",
    "peak_memory_mb",
    "steps",
    "checksum",
    "checkpoint",
    "ms",
    "low",
    "high",
    "ratio",
}


def plain(content):
    """JSON without times."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items() if key not in _FREE}
    return [plain(each) for each in content] if isinstance(content, list) else content


def exact(content):
    """A checkpoint's content by its bytes."""
    if isinstance(content, torch.Tensor):
        return hashlib.sha256(content.contiguous().numpy().tobytes()).hexdigest()
    if isinstance(content, dict):
        return {key: exact(value) for key, value in content.items() if key != "config"}
    return [exact(each) for each in content] if isinstance(content, list | tuple) else str(content)


def kept(folder):
    """What a command has left, by file; logs and curves and locks are left out."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        parts = {*file.relative_to(folder).parts}
        if file.is_dir() or parts & {"log", "tensorboard", "lock", ".running", "job.log", "ray", "trials"}:
            continue
        # What a kill leaves half-written, or finished but not removed: nothing reads it, and it goes when it is stale.
        if any(part.startswith((".part-", ".pass-")) for part in parts):
            continue
        if file.suffix == ".json":
            found[name] = plain(json.loads(file.read_text()))
        elif file.suffix == ".pth":
            found[name] = exact(torch.load(file, weights_only=False))
        elif file.suffix == ".npz":
            found[name] = {key: array.tobytes() for key, array in np.load(file).items()}
        elif file.name in ("results.csv", "trials.csv"):
            frame = pd.read_csv(file, dtype=str)
            own = ("seconds", "memory", "ms_per", "id", "error")  # a trial's id is random; Ray names a killed process
            timed = [column for column in frame if any(word in column for word in own)]
            found[name] = frame.drop(columns=timed).to_dict()
        elif file.name == "best.yaml":
            found[name] = yaml.safe_load(file.read_text())
        elif file.suffix in (".html", ".svg", ".tex", ".md", ".csv"):
            found[name] = file.stat().st_size > 0
        else:
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


class Command:
    """A command with its folders, begun from nothing each time."""

    def __init__(self, base, options, settings):
        self.base, self.work = base, base / "work"
        write_tiny(base / "data")
        (base / "config.yaml").write_text(yaml.safe_dump(settings))
        if "sweep" in base.name:
            (base / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
            options = [*options, f"--tune={base / 'sweep.yaml'}"]
        self.options = [*options, f"--config_files={base / 'config.yaml'}"]
        self.whole, self.points, self.trial_points, self.steps = None, [], [], []

    def run(self, **given):
        (self.base / "said").unlink(missing_ok=True)
        return kill_points.run(self.options, self.base, self.work, **given)

    def clear(self):
        shutil.rmtree(self.work, ignore_errors=True)
        for suffix in (".steps", ".killed"):
            Path(f"{self.work}{suffix}").unlink(missing_ok=True)

    def count(self):
        """Run it undisturbed, and list its points."""
        self.clear()
        assert self.run(counted=True) == 0, self.said()
        self.whole, self.points = kept(self.work), kill_points.points(self.work)
        self.trial_points = kill_points.points(self.work, trial=True)
        self.steps = Path(f"{self.work}.steps").read_text().splitlines()

    def fault(self, **point):
        """What is wrong after a kill at this point and the same command again; None if nothing."""
        self.clear()
        if self.run(**point) != 0 and (code := self.again()) != 0:
            return f"{point}: {code} {self.said()[-300:]}"
        again = kept(self.work)
        if again != self.whole:
            differing = [name for name in {*again, *self.whole} if again.get(name) != self.whole.get(name)]
            return f"{point}: {differing}"
        return None

    def again(self):
        """The same command; a sweep that has begun says with which option it goes on."""
        code, before = self.run(), self.options
        if code == 1 and (found := re.search(r"go on with (--tune_resume=\S+), or", self.said())):
            self.options = [found[1]]
            code, self.options = self.run(), before
        return code

    def said(self):
        return (self.base / "said").read_text(errors="replace")


def settings_of(base, encoder):
    own = {
        "data_path": str(base / "data"),
        "kd_cache_dir": str(base / "work" / "cache"),
        "kd_teacher_dir": str(base / "work" / "teachers"),
        "kd_output_dir": str(base / "work" / "out"),
        "kd_text_encoder": str(encoder),
        "use_gpu": False,
    }
    return {**TINY, **TINY_TEACHER, **own}


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_encoder):
    """Makes one of the commands, counted; each once."""
    made = {}

    def make(name):
        if name not in made:
            base = tmp_path_factory.mktemp(name)
            options, more = COMMANDS[name]
            made[name] = Command(base, options, {**settings_of(base, tiny_encoder), **more})
            made[name].count()
        return made[name]

    return make


COMMANDS = {
    "run": (
        ["--model=SASRec", "--dataset=tiny", "--kd=prmkd_plus"],
        {"kd_teachers": ["UniSRec"], "kd_save_ranks": True},
    ),
    "pretrain": (
        ["--model=UniSRec", "--train_stage=pretrain", "--datasets=tiny"],
        {"hidden_size": 16, "inner_size": 16, "n_exps": 2},
    ),
    "compare": (
        ["--compare=none,mean", "--models=BPR", "--datasets=tiny", "--seeds=1", "--compare_jobs=1"],
        {"kd_teachers": ["UniSRec"], "epochs": 1},
    ),
    "sweep": (["--model=BPR", "--dataset=tiny", "--kd=mean"], {"kd_teachers": ["UniSRec"]}),
}
SWEEP = {"space": {"learning_rate": {"uniform": [0.001, 0.1]}}, "trials": 2, "max_concurrent": 1}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "pretrain", "compare"])
def test_killed_at_every_step(name, command):
    given = command(name)
    faults = [fault for point in given.points if (fault := given.fault(kill=point)) is not None]
    print(f"{name}: {len(given.points)} points")
    assert not faults, "\n".join(faults)


SAMPLE = {"run": 5, "pretrain": 3, "compare": 2}


@pytest.mark.parametrize("name", SAMPLE)
def test_killed_at_a_few_steps(name, command):
    """A fixed sample, and of a pre-training the moment between its two files."""
    given = command(name)
    few = np.random.default_rng(1).choice(len(given.points), SAMPLE[name], replace=False)
    points = [given.points[number] for number in few]
    if name == "pretrain":
        moved = re.compile(r"replace\t.*/unfinished-\w+/UniSRec\.")
        moves = [number for number, step in enumerate(given.steps) if moved.match(step)]
        assert len(moves) == 2
        points += [(number, "before") for number in moves]
    faults = [fault for point in points if (fault := given.fault(kill=point)) is not None]
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("whose", ["kill", "trial_kill"])
def test_a_sweep_killed_at_some_steps(whose, command):
    """Ray takes long to start: every 20th point of the driver, and 4 points of a trial, which Ray then trains again."""
    given = command("sweep")
    points = given.points[::20] if whose == "kill" else given.trial_points[::4][:4]
    faults = [fault for point in points if (fault := given.fault(**{whose: point})) is not None]
    assert not faults, "\n".join(faults)


# Every kind of file that the commands leave, by the start of its path: what tests its bytes, or why none is needed.
KINDS = {
    r"(cache|teachers)/tiny/[^/]+/(manifest\.json|.*\.npy|.*\.safetensors)": "test_store",
    r"(cache|teachers)/tiny/\.pass-": "test_encoding_jobs",
    r"out/UniSRec\.(json|safetensors)": "test_pretrained_card",
    r"out/(comparison|sweep)\.json": "test_json_files, test_stored_files",
    r"out/tiny/BPR/cost\.json": "test_stored_files",
    r"out/tiny/BPR/\w+/\d+/(job\.json|result\.json|.*\.pth|test_ranks\.npz)": "test_stored_files",
    r"out/best\.yaml": "test_stored_files",
    r"out/(winner/)?(result\.json|\w+\.pth|test_ranks\.npz|distillation\.svg)": "the user's; a name alone is read",
    r"out/(winner/)?data\.safetensors": "test_load",
    r"out/_jobs/.*/job\.json": "written before each use",
    r"out/.*\.(csv|svg|html|tex|md)": "written, never read",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_file_is_of_a_kind_that_is_tested(name, command):
    unknown = [file for file in command(name).whole if not any(re.match(kind, file) for kind in KINDS)]
    assert not unknown
