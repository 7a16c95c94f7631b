"""A lock on a folder that two runs may name."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from recbole_prmkd.errors import UserError
from recbole_prmkd.storage.disk import PART, writing

LOCK = ".running"


@contextmanager
def alone(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Inside, no other process that asks for this lock works in the folder; a process that is killed leaves it free.

    The folder is made where it is not there, and removed again if nothing is left in it.

    Args:
        name: of the lock file in the folder; it is removed at the end.
    Raises:
        UserError: another process holds the lock, or the file cannot be written.
    """
    file, there = folder / name, folder.exists()
    lock = FileLock(file, timeout=0)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:  # an OSError too
            raise UserError(
                f"{folder} is in use by {_holder(file)}: wait for its end, or name another folder with --kd_output_dir."
            ) from None
    try:
        if not isinstance(lock, SoftFileLock):  # which keeps its own notes there
            with suppress(OSError):
                since = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
                file.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since}\n", encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            file.unlink()  # before the release: a process that waits for this file finds it gone and makes its own
        lock.release()
        if not there:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def is_unused(folder: Path) -> bool:
    """Whether nothing lies in the folder but a lock and what a killed process left half-written."""
    return all(file.name == LOCK or file.name.startswith(PART) for file in folder.iterdir())


def _holder(file: Path) -> str:
    try:
        text = " ".join(file.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        text = ""
    return text[:200] or "another process"
