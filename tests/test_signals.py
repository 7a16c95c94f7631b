"""Ctrl-C and SIGTERM, at any time: one line, exit code 130 or 143 within 3 seconds, no child left, files whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from test_distributed import free_port

ROOT = Path(__file__).parent.parent
BOTH = [signal.SIGINT, signal.SIGTERM]
REUSED = {
    "plain": "the same command reuses what is finished",
    "pretrain": "the same command reuses finished item vectors",
    "compare": "the same command goes on; finished cells",
    "sweep": "--tune_resume={out} goes on; finished trials are kept",
}


@pytest.fixture
def started(settings, tmp_path):
    """Start the command line, or other arguments of Python, as the leader of a process group."""
    processes = []

    def start(*arguments, **fixed):
        if not fixed:
            command = list(arguments)
        else:
            (tmp_path / "fixed.yaml").write_text(yaml.safe_dump(settings(use_gpu=False, **fixed)))
            command = [str(ROOT / "run_recbole_prmkd.py"), f"--config_files={tmp_path / 'fixed.yaml'}", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (tmp_path / "said").open("w") as said:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=said,
                stderr=said,
                cwd=tmp_path,
                env=environment,
                start_new_session=True,
            )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def until(true, process, seconds=120):
    """Wait until this is true of a process that runs."""
    end = time.time() + seconds
    while not true():
        assert process.poll() is None and time.time() < end
        time.sleep(0.05)


def check_end(process, number, tmp_path, reused, group=False):
    """Send the signal, to the whole group as a terminal does; check exit code, seconds, children and the line."""
    children = psutil.Process(process.pid).children(recursive=True)
    sent = time.time()
    (os.killpg if group else os.kill)(process.pid, number)
    assert process.wait(20) == 128 + number
    assert time.time() - sent < 3
    for child in children:
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, child
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said and "PC: @" not in said, said[-3000:]
    assert said.splitlines()[-1].split("recbole_prmkd: Interrupted", 1)[1].lstrip("; ").startswith(reused)
    return children


@pytest.mark.parametrize("seconds", [0.3, 1.5])
@pytest.mark.parametrize("number", BOTH)
def test_during_the_imports(number, seconds, started, tmp_path):
    process = started("--model=BPR", "--dataset=tiny", epochs=2000)
    time.sleep(seconds)
    check_end(process, number, tmp_path, "before anything began" if seconds < 1 else "")


def trained(folder):
    """Whether a log below the folder has a second epoch."""
    return lambda: any("epoch 1 " in log.read_text() for log in folder.rglob("*.log"))


LONG = {"epochs": 9000, "stopping_step": 9000}


@pytest.mark.parametrize("number", BOTH)
def test_during_a_plain_run(number, started, tmp_path):
    process = started("--model=SASRec", "--dataset=tiny", "--kd=prmkd", **LONG)
    until(trained(tmp_path / "out"), process)
    check_end(process, number, tmp_path, REUSED["plain"], group=True)
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
def test_during_a_training_of_several_processes(number, started, tmp_path):
    options = ["--model=SASRec", "--dataset=tiny", "--kd=none", "--nproc=2", f"--port={free_port()}"]
    process = started(*options, **LONG)
    until(trained(tmp_path / "out"), process)
    assert len(check_end(process, number, tmp_path, REUSED["plain"], group=number == signal.SIGINT)) >= 2


def test_while_several_processes_start(started, tmp_path):
    """Theirs is the same Ctrl-C, in the midst of their imports."""
    process = started("--model=SASRec", "--dataset=tiny", "--nproc=2", f"--port={free_port()}", **LONG)
    until(lambda: len(psutil.Process(process.pid).children()) >= 3, process)
    time.sleep(1)
    check_end(process, signal.SIGINT, tmp_path, REUSED["plain"], group=True)


def test_during_a_pre_training(started, tmp_path):
    options = ["--model=UniSRec", "--train_stage=pretrain", "--datasets=tiny"]
    process = started(*options, kd_unisrec_pretrain_epochs=9000, **LONG)
    until(trained(tmp_path / "out"), process)
    check_end(process, signal.SIGTERM, tmp_path, REUSED["pretrain"])


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
def test_during_a_comparison(number, started, tmp_path):
    options = ["--compare=none,prmkd", "--models=SASRec", "--dataset=tiny", "--seeds=2", "--compare_jobs=2"]
    process = started(*options, **LONG)
    until(trained(tmp_path / "out"), process)
    check_end(process, number, tmp_path, REUSED["compare"], group=number == signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("number", BOTH)
def test_during_a_sweep(number, started, tmp_path):
    (tmp_path / "sweep.yaml").write_text("space: {learning_rate: {uniform: [0.001, 0.1]}}\nmax_concurrent: 2\n")
    process = started("--model=BPR", "--dataset=tiny", f"--tune={tmp_path / 'sweep.yaml'}", **LONG)
    until(trained(tmp_path / "out" / "trials"), process)
    reused = REUSED["sweep"].format(out=tmp_path / "out")
    children = check_end(process, number, tmp_path, reused, group=number == signal.SIGINT)
    assert len(children) > 4 and not (tmp_path / "out" / "best.yaml").exists()


SCRIPT = """
import os, sys, time
sys.path.insert(0, {package!r})  # the module alone: the package takes seconds
from interruption import interruptible
with interruptible():
    {before}
    open("ready", "w").close()
    {work}
"""
BLOCKED = {
    "in C code": ("import torch; matrix = torch.randn(4000, 4000)", "torch.linalg.eigvals(matrix)"),
    "swallowed": ("", "\n    while True:\n        try: time.sleep(9)\n        except BaseException: pass"),
    "error in its place": ("", "\n    try: time.sleep(99)\n    except BaseException: raise ValueError"),
}


@pytest.mark.parametrize("kind", BLOCKED)
def test_what_does_not_end_by_itself_is_ended(kind, started, tmp_path):
    before, work = BLOCKED[kind]
    process = started("-c", SCRIPT.format(package=str(ROOT / "recbole_prmkd"), before=before, work=work))
    until((tmp_path / "ready").exists, process)
    time.sleep(0.3)
    check_end(process, signal.SIGINT, tmp_path, REUSED["plain"])


def test_a_forked_process_that_is_ended_ends_nothing_else(started, tmp_path):
    """A loader's worker is ended by SIGTERM after each epoch."""
    work = "\n    if os.fork() == 0: time.sleep(99)\n    time.sleep(2.5)"
    process = started("-c", SCRIPT.format(package=str(ROOT / "recbole_prmkd"), before="", work=work))
    until(lambda: psutil.Process(process.pid).children() and (tmp_path / "ready").exists(), process)
    psutil.Process(process.pid).children()[0].terminate()
    assert process.wait(20) == 0
