"""A disk that is full, read-only or gone ends a run with one sentence, whichever library met it.

Python and numpy raise OSError, safetensors an error of its own, and torch a RuntimeError.
"""

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

from recbole_prmkd.errors import UserError

PART = ".part-"  # start of the names of what is being written
STALE_SECONDS = 24 * 3600  # of what killed processes left half-written

# What a disk answers, not a mistake in a program: these are no error of ours wherever they are raised.
_OF_A_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
}
_OF_TORCH = ("PytorchStreamWriter", "unexpected pos", "iostream error", "file write failed")


def is_fault(error: BaseException) -> bool:
    """Whether a disk has caused this error."""
    if isinstance(error, OSError):
        return error.errno in _OF_A_DISK
    if isinstance(error, SafetensorError):
        return "os error" in str(error)
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_TORCH)


def is_read_only(folder: Path) -> bool:
    """Whether the folder is there, but not to be written to."""
    return folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, `path` is written.

    Raises:
        UserError: it cannot be (full disk, no permission, a folder in its place).
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_fault(error):
            raise
        raise UserError(f"Cannot write {path}: {_words(error)}; free the disk or name another folder.") from error


@contextmanager
def working() -> Iterator[None]:
    """Around a whole run: what its parts and RecBole write where nothing here stands between.

    Raises:
        UserError: a disk has failed.
    """
    try:
        yield
    except Exception as error:
        if not is_fault(error):
            raise
        raise UserError(
            f"A file cannot be read or written: {_words(error)}; free the disk, or name other folders with "
            "--kd_output_dir, --kd_cache_dir and --kd_teacher_dir (TMPDIR for temporary files)."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file or a new folder; at the end it takes the place of `path`, after an error it goes.

    Raises:
        UserError: it cannot be written.
    """
    part = path.with_name(f"{PART}{path.name}-{os.getpid()}")
    with writing(path):
        remove_stale(path.parent, f"{PART}{escape(path.name)}-*", STALE_SECONDS)
        try:
            yield part
            os.replace(part, path)
        except BaseException:
            remove(part)
            raise


def remove(path: Path) -> None:
    """Remove a folder, or whatever else has its name; what cannot be removed stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def remove_stale(folder: Path, pattern: str, seconds: float) -> None:
    """Remove what killed processes left in the folder under these names, if nobody has touched it for so long."""
    for left in folder.glob(pattern):
        with suppress(FileNotFoundError):  # another process has just renamed it
            if time.time() - left.stat().st_mtime > seconds:
                remove(left)


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())
