"""What a run on one machine asks of the network: nothing. Guards in every Python process note each look-up."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from recbole_prmkd.errors import UserError
from recbole_prmkd.tune.cluster import cluster

ROOT = Path(__file__).parent.parent
# Python imports a module of this name at its start, in the processes that Ray starts too.
GUARD = """
import os, sys

def note(event, given):
    name = given[1] if event in ("socket.connect", "socket.sendto") else given if event.endswith("gethostbyname") else (
        given if event == "socket.getaddrinfo" else None)
    host = str(name[0]) if isinstance(name, tuple) else "localhost"
    if not host.removeprefix("::ffff:").startswith(("127.", "::1", "localhost", "None", "0.0.0.0")):
        with open(os.environ["ASKED"], "a") as file:
            print(os.getpid(), sys.argv[:1], event, host, file=file)

sys.addaudithook(note)
"""


@pytest.fixture
def guarded(tmp_path):
    """Run Python with these arguments; what it and its children asked of the network, and what it printed."""
    folder = tmp_path / "guard"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(GUARD)

    def run(*arguments, **more):
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "RAY_"))}
        asked, path = tmp_path / "asked", os.pathsep.join([str(folder), str(ROOT)])
        environment |= {"PYTHONPATH": path, "ASKED": str(asked), "OMP_NUM_THREADS": "1", **more}
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        return asked.read_text() if asked.exists() else "", done.stdout

    return run


def test_the_guard_notes_what_leaves_the_machine(guarded):
    script = """
import socket
try:
    socket.create_connection(("192.0.2.77", 80), timeout=0.1)
except OSError:
    pass
"""
    asked, _ = guarded("-c", script)
    assert "socket.connect 192.0.2.77" in asked


def test_with_a_local_encoder_no_hub_is_asked(guarded, settings, tiny_encoder, tmp_path):
    """Item texts for UniSRec and Recformer's tokens, with HF_HUB_OFFLINE unset."""
    fixed = settings(
        kd_teachers=["UniSRec", "Recformer"],
        kd_text_encoder=str(tiny_encoder),
        kd_recformer_max_token_num=32,
        kd_recformer_max_item_list_length=4,
        kd_recformer_attention_window=8,
        kd_recformer_epochs=1,
        kd_recformer_stage_two_epochs=0,
        kd_recformer_max_rows_per_epoch=16,
        kd_cache_dir=str(tmp_path / "cache"),
        kd_teacher_dir=str(tmp_path / "teachers"),
        epochs=1,
    )
    (tmp_path / "fixed.yaml").write_text(yaml.safe_dump(fixed))
    options = ["--model=BPR", "--dataset=tiny", "--kd=prmkd", f"--config_files={tmp_path / 'fixed.yaml'}"]
    asked, _ = guarded(ROOT / "run_recbole_prmkd.py", *options)
    assert asked == "" and (tmp_path / "out" / "result.json").is_file()


RAY = """
import os, psutil, ray
from recbole_prmkd.tune.cluster import cluster

@ray.remote
def task():
    return 1

with cluster(None):
    assert ray.get(task.remote()) == 1
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    connections = [each for process in processes for each in process.net_connections(kind="inet")]
    print({each.laddr.ip.removeprefix("::ffff:") for each in connections})
    print(os.environ["RAY_AUTH_MODE"], os.environ["RAY_USAGE_STATS_ENABLED"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, "/proc/nowhere"])
def test_the_ray_of_a_local_sweep_stays_on_the_loopback_address(home, guarded):
    """Token on, no usage reports, no questions to a cloud's metadata server; a home is not needed."""
    asked, printed = guarded("-c", RAY, **({"HOME": home} if home else {}))
    assert printed.splitlines() == ["{'127.0.0.1'}", "token 0"]
    assert asked == ""


def failing_ray(monkeypatch, failures):
    """A `ray.init` that starts a process and fails so many times; the processes that it has started."""
    started = []

    def init(*given, **named):
        if len(started) < failures:
            started.append(psutil.Popen([sys.executable, "-c", "import time; time.sleep(100)"]))
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    return started


def test_ray_that_does_not_start_in_time_is_started_once_more(monkeypatch):
    started = failing_ray(monkeypatch, failures=1)
    with cluster(None):
        pass
    assert [process.wait(5) for process in started] == [-9]


def test_ray_that_never_starts_ends_in_a_sentence_and_leaves_nothing(monkeypatch):
    started = failing_ray(monkeypatch, failures=9)
    sentence = r"Ray did not start on this machine, tried twice: .*timed out.*--ray_address"
    with pytest.raises(UserError, match=sentence), cluster(None):
        pass
    assert [process.wait(5) for process in started] == [-9, -9]
