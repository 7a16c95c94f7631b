"""A run's folder: result.json, the student's checkpoint, figures and logs; all or nothing.

Everything is written in `unfinished/` inside the output folder and moved out at the end, result.json last (of a
pre-training the weights). One run at a time has the folder.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from recbole_prmkd.errors import NotFinite, UserError
from recbole_prmkd.results.schema import SCHEMA, RunResult
from recbole_prmkd.storage import store
from recbole_prmkd.storage.disk import remove, writing
from recbole_prmkd.storage.json_files import read_json
from recbole_prmkd.storage.locks import LOCK, alone

RESULT = "result.json"
CURVES, RANKS = "distillation.svg", "test_ranks.npz"  # beside it, where there are any
DATA = "data.safetensors"  # what the student is rebuilt from (`serving.kept_data`)
TEXT = "item_text.safetensors"  # from which new items get their vectors (`serving.new_items`)
UNFINISHED = "unfinished"
_CURVES_FILES = "events.out.tfevents.*"
PROGRESS = "progress"  # start of the names of a training's state there (`results.resume`)


@contextmanager
def output_folder(
    path: Path,
    name: str = UNFINISHED,
    files: Sequence[str] = (RESULT, CURVES, RANKS),
    folders: Sequence[str] = ("log", "tensorboard"),
) -> Iterator[Path]:
    """A folder to work in, `path`/`name`; on success its content moves into `path`.

    A run that fails after its first epoch leaves it with weights and log. So does an error that is no bad input once
    training has begun. A run that fails before leaves nothing. The next run clears it. An older result in `path` stays
    until the new one is complete, then goes with its files; what else is there stays.

    Args:
        files, folders: what the run may move into `path`; the first file last, without which the others are nothing.
    Raises:
        UserError: the folder cannot be written, another run works in it, or something else has one of the names.
    """
    with alone(path, LOCK + name.removeprefix(UNFINISHED)):
        _check_names(path, files, (*folders, name))
        yield from _work_in(path, path / name, files[0])


def _work_in(path: Path, work: Path, last: str) -> Iterator[Path]:
    with writing(work):
        clear_leftovers(work)
        work.mkdir(exist_ok=True)
    try:
        yield work
    except BaseException as error:
        trained = any(work.glob("*.pth")) or any(work.glob(f"{PROGRESS}*"))
        if trained and isinstance(error, NotFinite):
            raise NotFinite(f"{error} What it had written before is in {work}.") from error
        begun = any(work.rglob(_CURVES_FILES)) and not isinstance(error, UserError)  # a trainer begins with them
        if not trained and not begun:
            remove(work)
        raise
    try:
        _move_out(work, path, last)
        work.rmdir()
    except OSError as error:
        raise UserError(
            f"The run has ended, but its files cannot be moved from {work} to {path} ({error}): move them yourself "
            "before the next run, which would clear them."
        ) from error


def clear_leftovers(work: Path) -> None:
    """Remove what an earlier run left, but for the state of its training, with logs and curves."""
    if not any(work.glob(f"{PROGRESS}*")):
        remove(work)
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
    file = folder / RESULT
    if not file.is_file():
        raise UserError(f"There is no {file}: the run has not ended; start it again.")
    try:
        run = RunResult.model_validate(read_json(file))
    except ValueError as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        fault = " ".join(f"{'.'.join(map(str, first['loc']))} {first['msg']}".split())
        raise UserError(f"{file} is no result of schema {SCHEMA}: {fault}.") from error
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error}; start the run again.") from error
    name = run.student.checkpoint
    if name is not None and not re.fullmatch(r"[^/\\\0]+\.pth", name):
        raise UserError(f"{file} is no result of schema {SCHEMA}: its checkpoint {name!r} is no file beside it.")
    return run


def _check_names(path: Path, files: Sequence[str], folders: Sequence[str]) -> None:
    """Reject a folder in which the run's files would find no place, before the run."""
    for name in files:
        if (path / name).is_dir():
            raise UserError(f"{path / name} is a folder, but the run writes a file of that name: move it away.")
    for name in folders:
        if os.path.lexists(path / name) and not (path / name).is_dir():
            raise UserError(f"{path / name} is no folder, but the run writes a folder of that name: move it away.")


def _move_out(work: Path, path: Path, last: str) -> None:
    if (work / RESULT).exists() and (path / RESULT).exists():
        _remove_old(path)  # from here to the last line there is no result to trust
    for item in sorted(work.iterdir(), key=lambda item: item.name == last):
        move(item, path / item.name)


def _remove_old(path: Path) -> None:
    """Remove an older run's result, the files that it names and its curves, but not its logs."""
    try:
        run = read_result(path)
        checkpoint, guarded = run.student.checkpoint, [*run.guard.valid] if run.guard else []
    except UserError:
        checkpoint, guarded = None, []
    for name in (RESULT, CURVES, RANKS, DATA, *([checkpoint] if checkpoint else [])):
        (path / name).unlink(missing_ok=True)
    for kd in ("", *guarded):
        for file in (path / "tensorboard" / kd).glob(_CURVES_FILES):  # else TensorBoard shows two runs as one
            file.unlink()


def move(item: Path, target: Path) -> None:
    """Move a file, or a folder into one that may be there already, file by file."""
    if item.is_dir() and target.is_dir():
        for inner in list(item.iterdir()):
            move(inner, target / inner.name)
        item.rmdir()
    else:
        os.replace(item, target)
