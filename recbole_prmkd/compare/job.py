"""One job of a comparison. A process of its own does it (`work`): no run meets another's memory or random state.

`job.json` in its folder says what to do and holds all settings; the process's output goes to `job.log` beside it. Once
a cell has ended, `job.json` also holds the checksums of its files, so that a damaged one is not taken for a result.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from typing import Any

import recbole_prmkd
from recbole_prmkd.interruption import children_wait_for_signals
from recbole_prmkd.results.run_folder import RESULT
from recbole_prmkd.storage import store
from recbole_prmkd.storage.json_files import read_json

FILE, LOG = "job.json", "job.log"
JOBS = "_jobs"  # folder of sweeps, preparations and measurements, inside the comparison's
PARENT = "RECBOLE_PRMKD_COMPARISON"  # environment variable: id of the process that started this one
_FILES, _KINDS = "files", (".pth", ".npz")  # in job.json; kinds of files beside the result
_MAX_ERROR = 400  # characters


@dataclass(frozen=True)
class Job:
    """What a process is to do.

    folder: for job.json and job.log. work: a name in `work.WORK`. needs: folder of the job that must end well before.
    """

    name: str
    folder: Path
    work: str
    model: str
    dataset: str
    settings: Mapping[str, Any]
    more: Mapping[str, Any] = field(default_factory=dict)
    needs: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """What job.json holds."""
        content = {"work": self.work, "model": self.model, "dataset": self.dataset}
        return store.as_json({**content, "settings": dict(self.settings), **self.more})

    def write(self) -> None:
        """Write job.json, for the process that is to do the job, and remove a result that another job has left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.written() or damaged(self.folder):
            (self.folder / RESULT).unlink(missing_ok=True)
        store.write_json(self.folder / FILE, self.as_json())

    def written(self) -> bool:
        """Whether the folder's job.json is this job's already."""
        content = _content(self.folder)
        content.pop(_FILES, None)
        return content == self.as_json()

    def note_files(self) -> None:
        """Add the checksums of the files that the ended job has left, unless they are noted already."""
        content = _content(self.folder)
        if _FILES not in content:
            left = [file for file in sorted(self.folder.iterdir()) if file.name == RESULT or file.suffix in _KINDS]
            noted = {file.name: store.file_digest(file) for file in left}
            store.write_json(self.folder / FILE, {**content, _FILES: noted})


def damaged(folder: Path) -> bool:
    """Whether a file of the ended job in this folder is not what it left; files that were removed do not matter."""
    noted = _content(folder).get(_FILES, {})
    for name, checksum in noted.items() if isinstance(noted, dict) else [(FILE, None)]:
        file = folder / Path(name).name
        if file.is_file() and store.file_digest(file) != checksum:
            getLogger().warning(f"{file} is not used, since it is damaged: the same comparison trains this cell again.")
            return True
    return False


def _content(folder: Path) -> dict[str, Any]:
    """What the folder's job.json holds; empty where it cannot be read."""
    try:
        content = read_json(folder / FILE)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def start_in(folder: Path, threads: int, gpu: str | None) -> subprocess.Popen[bytes]:
    """Start the process of the folder's job.json with this number of torch threads, on this GPU if any."""
    home = str(Path(recbole_prmkd.__file__).resolve().parent.parent)
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    environment[PARENT] = str(os.getpid())
    command = [sys.executable, "-m", "recbole_prmkd.compare.work", str(folder), gpu or ""]
    with (folder / LOG).open("wb") as log, children_wait_for_signals():  # Ctrl-C ends the comparison, which ends it
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)


def error_of(folder: Path, code: int) -> str | None:
    """What a process that has ended with this code went wrong with, in one sentence; None if nothing."""
    if code == 0:
        return None
    if code < 0:
        return f"ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    log = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    lines = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1].removeprefix("recbole_prmkd: ")[:_MAX_ERROR] if lines else f"ended with code {code}"
