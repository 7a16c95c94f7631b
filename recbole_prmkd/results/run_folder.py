"""A run's folder: result.json, the student's checkpoint, figures and logs; all or nothing.

Everything is written in `unfinished/` inside the output folder and moved out at the end, result.json last.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recbole_prmkd.errors import NotFinite, UserError
from recbole_prmkd.results.schema import SCHEMA, RunResult
from recbole_prmkd.storage import store

RESULT = "result.json"
CURVES, RANKS = "distillation.svg", "test_ranks.npz"  # beside it, where there are any
UNFINISHED = "unfinished"
PROGRESS = "progress"  # start of the names of a training's state there (`results.resume`)


@contextmanager
def output_folder(path: Path, name: str = UNFINISHED) -> Iterator[Path]:
    """A folder to work in, `path`/`name`; on success its content moves into `path`.

    A run that fails leaves its log in there, one rejected for bad input leaves nothing; the next run clears it. An
    older result in `path` stays until the new one is complete, then goes with its files; what else is there stays.

    Raises:
        UserError: the folder cannot be written.
    """
    work, there = path / name, path.exists()
    try:
        _clear(work)
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {path}: {error}; name another folder with --kd_output_dir.") from error
    try:
        yield work
    except NotFinite as error:
        raise NotFinite(f"{error} What it had written before is in {work}.") from error
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
        if not there:
            with suppress(OSError):  # another process has put something there
                path.rmdir()
        raise
    _move_out(work, path)
    work.rmdir()


def _clear(work: Path) -> None:
    """Remove what an earlier run left, but for the state of its training, with logs and curves."""
    if not any(work.glob(f"{PROGRESS}*")):
        shutil.rmtree(work, ignore_errors=True)
        return
    for item in work.iterdir():
        if item.is_file() and not item.name.startswith(PROGRESS):
            item.unlink()


def write_result(folder: Path, result: RunResult) -> None:
    """Write result.json."""
    store.write_json(folder / RESULT, result.model_dump(mode="json", by_alias=True))


def read_result(folder: Path) -> RunResult:
    """The result in a run's folder.

    Raises:
        UserError: there is none, or it is of another schema.
    """
    try:
        return RunResult.model_validate_json((folder / RESULT).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"There is no {folder / RESULT}: the run has not ended; start it again.") from error
    except ValueError as error:
        raise UserError(f"{folder / RESULT} is no result of schema {SCHEMA}: {error}.") from error


def _move_out(work: Path, path: Path) -> None:
    if (path / RESULT).exists():
        _remove_old(path)  # from here to the last line there is no result to trust
    for item in sorted(work.iterdir(), key=lambda item: item.name == RESULT):
        _move(item, path / item.name)


def _remove_old(path: Path) -> None:
    """Remove an older run's result, the files that it names and its curves, but not its logs."""
    try:
        checkpoint = read_result(path).student.checkpoint
    except UserError:
        checkpoint = None
    for name in (RESULT, CURVES, RANKS, *([checkpoint] if checkpoint else [])):
        (path / name).unlink(missing_ok=True)
    for file in (path / "tensorboard").glob("events.out.tfevents.*"):  # else TensorBoard shows two runs as one
        file.unlink()


def _move(item: Path, target: Path) -> None:
    """Move a file, or a folder into one that may be there already, file by file."""
    if item.is_dir() and target.is_dir():
        for inner in list(item.iterdir()):
            _move(inner, target / inner.name)
        item.rmdir()
    else:
        os.replace(item, target)
