"""Kill a command at any one of its file-system steps, in a process forked from one that has imported everything.

A step is a call that changes what lies below a folder: opening a file for writing, replacing, renaming, removing,
making a folder, reserving room, and what torch and safetensors write by themselves. At each step there are these
moments of a kill:

    before   nothing of the step has happened
    opened   the file is there and empty
    torn     half of the first thing that was written is there

After a step is before the next one. All processes of a command count together, and all are killed together. A sweep's
trials are processes of Ray: they count by themselves, and the first one that comes to its point is killed alone.
"""

import builtins
import io
import json
import mmap
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

import psutil
import safetensors.torch
import sentence_transformers  # noqa: F401  what a command would import by and by
import torch
import torch._dynamo  # an optimizer imports it
from matplotlib import pyplot  # noqa: F401
from transformers import BertModel, BertTokenizerFast  # noqa: F401

from recbole_prmkd import quick_start
from recbole_prmkd.compare import cost, job, schedule, work
from recbole_prmkd.compare import run as _comparison  # noqa: F401
from recbole_prmkd.tune import sweep, trial

ROOT = Path(__file__).parent.parent
MOMENTS = ("before", "opened", "torn")
Point = tuple[int, str]  # number of the step, moment
_CHANGES = ("replace", "rename", "remove", "unlink", "mkdir", "rmdir", "posix_fallocate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TRIAL = "PRMKD_KILL_TRIAL"  # environment variable: what a trial is to do
_LIBRARIES = ("torch.save", "serialize_file")
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


class Steps:
    """Counts the steps below a folder; kills the process group at one of them."""

    def __init__(self, below: str, kill: Point | None, trial: bool = False) -> None:
        self.below, self.kill, self.trial = below, kill, trial
        self.number = mmap.mmap(-1, 8)  # shared with forked processes

    def take(self, name: str, path: Any, do: Callable[[], Any], torn: Callable[[], Any] | None = None) -> Any:
        """Do a step; torn: do half of it."""
        if not self._counts(path):
            return do()
        number = int.from_bytes(self.number[:], "little")
        self.number[:] = (number + 1).to_bytes(8, "little")
        with real_open(f"{self.below}.steps", "a") as file:
            file.write(f"{name}\t{path}\t{torn is not None}\t{self.trial}\n")
        if self.kill is None or self.kill[0] != number or (self.trial and Path(f"{self.below}.killed").exists()):
            return do()
        if self.kill[1] == "before":
            self.end()
        if self.kill[1] == "torn" and torn is not None:
            return torn()
        do_and_keep = do()  # noqa: F841  kept open until the end
        self.end()
        return None

    def end(self) -> None:
        if self.trial:
            Path(f"{self.below}.killed").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(0, signal.SIGKILL)
        signal.pause()

    def _counts(self, path: Any) -> bool:
        if type(threading.current_thread()).__module__.startswith("tensorboard"):
            return False  # curves, at moments of their own
        if isinstance(path, int) or not os.path.isabs(os.fspath(path)):
            return isinstance(path, int)
        return os.path.realpath(path).startswith(self.below + "/")


class Torn:
    """A file whose first write is half done when the kill comes."""

    def __init__(self, file: Any, steps: Steps) -> None:
        self.file, self.steps = file, steps

    def write(self, content: Any) -> int:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        return self.steps.end()

    def close(self) -> None:
        self.steps.end()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __iter__(self) -> Any:
        return iter(self.file)

    def __enter__(self) -> "Torn":
        return self

    def __exit__(self, *_: object) -> None:
        self.steps.end()


real_open = io.open


def install(steps: Steps) -> None:
    """Wrap everything that changes files, in this process and those that it forks."""

    def opening(file: Any, mode: str = "r", *args: Any, **named: Any) -> Any:
        do = partial(real_open, file, mode, *args, **named)
        return steps.take("open", file, do, lambda: Torn(do(), steps)) if set(mode) & set("wax+") else do()

    def os_opening(path: Any, flags: int, *args: Any, **named: Any) -> int:
        do = partial(real_os_open, path, flags, *args, **named)
        return steps.take("os.open", path, do) if flags & _WRITING else do()

    builtins.open = io.open = opening  # type: ignore[assignment]
    real_os_open, os.open = os.open, os_opening
    for name in _CHANGES:
        setattr(os, name, _changing(steps, name, getattr(os, name)))
    torch.save = _saving(steps, "torch.save", torch.save)
    safetensors.torch.serialize_file = _saving(steps, "serialize_file", safetensors.torch.serialize_file)


def _changing(steps: Steps, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    return lambda path, *args, **named: steps.take(name, path, partial(real, path, *args, **named))


def _saving(steps: Steps, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """A library's function that writes a file by itself."""

    def save(content: Any, file: Any, *args: Any, **named: Any) -> Any:
        do = partial(real, content, file, *args, **named)

        def torn() -> None:
            do()
            os.truncate(file, os.stat(file).st_size // 2)
            steps.end()

        return steps.take(name, file, do, torn) if isinstance(file, str | Path) else do()

    return save


def _process(
    command: Sequence[str], folder: Path, below: Path, kill: Point | None, trial_kill: Point | None, counted: bool
) -> None:
    os.setsid()
    said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(folder)
    torch.set_num_threads(1)
    psutil.cpu_percent = lambda interval=None: 0.0  # RecBole watches the CPU for a second
    cost.BUDGET, cost._FEWEST, cost._MOST = 0.0, 2, 2
    schedule.start_in = _forked  # type: ignore[assignment]
    quick_start.draw_distillation = lambda history, path, title: path.touch()
    if trial_kill is not None or counted:
        os.environ[_TRIAL] = json.dumps([str(below), trial_kill])
        sweep.run_trial = run_trial
    if counted or kill is not None:
        install(Steps(str(below), kill))
    sys.argv = ["run_recbole_prmkd.py", *command]
    try:
        command_line = runpy.run_path(str(ROOT / "run_recbole_prmkd.py"))
        command_line["main"]()
    except SystemExit as error:
        print(error.code, flush=True)
        os._exit(0 if error.code in (0, None) else 1)
    except BaseException:
        traceback.print_exc()
        os._exit(2)
    os._exit(0)


def run_trial(*args: Any, **named: Any) -> None:
    """In place of `tune.trial.run_trial`, inside a process of Ray: the same with counted steps."""
    below, kill = json.loads(os.environ[_TRIAL])
    if not isinstance(builtins.open, FunctionType):  # a process may run several trials
        install(Steps(below, tuple(kill) if kill else None, trial=True))
    trial.run_trial(*args, **named)


class _Forked:
    """A job's process, forked: what `compare.schedule` needs of `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _forked(folder: Path, threads: int, gpu: str | None) -> "_Forked | subprocess.Popen[bytes]":
    """In place of `job.start_in`: its process without its imports."""
    log = open(folder / job.LOG, "wb")  # noqa: SIM115  a step of the command
    pid = os.fork()
    if pid:
        log.close()
        return _Forked(pid)
    code = 2
    try:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        sys.argv = ["work", str(folder), gpu or ""]
        with mock.patch.dict(os.environ):
            os.environ.pop(job.PARENT, None)
            work.main()
        code = 0
    except SystemExit as error:
        print(error.code, flush=True)
        code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(
    command: Sequence[str],
    folder: Path,
    below: Path,
    kill: Point | None = None,
    trial_kill: Point | None = None,
    counted: bool = False,
) -> int | None:
    """Run the command line in a process of its own; -9 if it was killed.

    Args:
        folder: to work in; `said` there has what the command says.
        below: steps below this folder count.
        kill: where all processes are killed. trial_kill: where a sweep's trial is.
        counted: list the steps, in a file beside `below`.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    process = _context.Process(target=_process, args=(command, folder, below, kill, trial_kill, counted))
    process.start()
    process.join(240)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{command} does not end: {(folder / 'said').read_text()[-2000:]}")
    return process.exitcode


def points(below: Path, trial: bool = False) -> list[Point]:
    """All points of the steps that `run` has listed; trial: of a sweep's trials, as if one process had run them all."""
    listed = []
    lines = [line.split("\t") for line in Path(f"{below}.steps").read_text().splitlines()]
    for number, (name, _, torn, _) in enumerate(line for line in lines if line[3] == str(trial)):
        moments = MOMENTS if torn == "True" else MOMENTS[:2] if name == "os.open" else MOMENTS[:1]
        listed += [(number, moment) for moment in moments if not (name in _LIBRARIES and moment == "opened")]
    return listed
