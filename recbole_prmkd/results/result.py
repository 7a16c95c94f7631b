"""What a run leaves: result.json with a versioned schema, the student's checkpoint, its logs; all or nothing.

Everything is written in `unfinished/` inside the output folder and moved out at the end, result.json last.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from recbole_prmkd.errors import UserError
from recbole_prmkd.teacher_cache import store

SCHEMA = "recbole_prmkd/1"
RESULT = "result.json"
CURVES, RANKS = "distillation.svg", "test_ranks.npz"  # beside it, where there are any
UNFINISHED = "unfinished"
_PACKAGES = (
    "recbole_prmkd",
    "recbole",
    "torch",
    "transformers",
    "sentence-transformers",
    "numpy",
    "pandas",
    "scipy",
    "ray",
)

Metrics = dict[str, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Measured(_Part):
    """RecBole's own ranking, and the one without the user's earlier items (`*_unseen`)."""

    valid: Metrics
    test: Metrics
    valid_unseen: Metrics
    test_unseen: Metrics


class KDResult(_Part):
    """How the student was distilled: what was found out about its class, and the strength of kd_loss that follows."""

    traits: str = Field(description="class whose traits it has, or `probed`")
    family: str = Field(description="where its scores come from: factorised, loss, full or pairs")
    scores: str = Field(description="what it ranks by: logits, or what logits were made from")
    loss: str = Field(description="its own loss: full-softmax, pairwise or pointwise")
    weight: float = Field(description="of kd_loss beside the student's own loss, in force")
    temperature: float = Field(description="of the student's scores, in force")
    rows: int | None = Field(description="examples of a batch that kd_loss is computed on, at most; None: all")
    every: int = Field(description="period of kd_loss in batches")


class StudentResult(_Measured):
    """The student, with the best epoch's weights; with `kd: ensemble` the teachers together, 0 epochs and seconds."""

    model: str
    parameters: int = Field(description="trainable numbers, equal to the stock model's")
    train_seconds: float = Field(description="wall time of RecBole's fit, validation included")
    epochs: int
    checkpoint: str | None = Field(description="file beside result.json; None if it was not to be saved")
    train_losses: list[float] = Field(description="sum over the batches, per epoch, as RecBole logs it")
    valid_scores: list[float] = Field(default=[], description="valid_metric at each validation")
    kd: KDResult | None = Field(default=None, description="None where kd_loss was not in use")


class TeacherResult(_Measured):
    """One teacher: its own metrics on the student's validation and test rows."""

    parameters: int
    seconds: float = Field(description="fine-tuning, as first measured")
    holdout: float = Field(description="its valid_metric on the holdout of the training split")
    peak_memory_mb: float | None = Field(default=None, description="most memory of the process that fine-tuned it")
    checkpoint: str | None = Field(default=None, description="the pre-trained file that it started from")
    unknown_rows: int = Field(description="training rows it knows nothing of (no history)")
    unknown_items: int = Field(description="items it knows nothing of (no text)")


class StepResult(_Part):
    """Wall time of one step, and whether its product was taken from an earlier run (None: it makes none)."""

    seconds: float
    reused: bool | None


class RunResult(BaseModel):
    """result.json."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_: str = Field(default=SCHEMA, alias="schema")
    config: dict[str, Any] = Field(description="every setting in force")
    versions: dict[str, str]
    seed: int
    device: str
    threads: int | None = Field(default=None, description="torch threads of the process")
    peak_memory_mb: float | None = Field(
        default=None, description="most memory of the process in the student's training and test; on CUDA the GPU's"
    )
    commit: str | None = Field(default=None, description="of this package's checkout; None where it is installed")
    dataset: dict[str, Any] = Field(description="name and counts after filtering and splitting")
    student: StudentResult
    teachers: dict[str, TeacherResult]
    steps: dict[str, StepResult]
    distillation: list[dict[str, float]] = Field(description="one entry per epoch; empty without distillation")


def versions() -> dict[str, str]:
    """Versions of the packages that shape a result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """The commit that this package runs from, `-dirty` where files differ from it; None outside a checkout."""
    home = Path(__file__).resolve().parent.parent.parent
    if not (home / ".git").exists():
        return None
    command = ["git", "-C", str(home), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or one that refuses the folder's owner
        return None


@contextmanager
def output_folder(path: Path, name: str = UNFINISHED) -> Iterator[Path]:
    """A folder to work in, `path`/`name`; on success its content moves into `path`.

    A run that fails leaves its log in there, one refused for bad input leaves nothing; the next run clears it. An
    older result in `path` stays until the new one is complete, then goes with its files; what else is there stays.
    """
    work, there = path / name, path.exists()
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"Cannot write to {path}: {error}; name another folder with --kd_output_dir.") from error
    try:
        yield work
    except UserError:
        shutil.rmtree(work, ignore_errors=True)
        if not there:
            with suppress(OSError):  # somebody else has put something there
                path.rmdir()
        raise
    _move_out(work, path)
    work.rmdir()


def write(folder: Path, result: RunResult) -> None:
    """Write result.json."""
    store.write_json(folder / RESULT, result.model_dump(mode="json", by_alias=True))


def read(folder: Path) -> RunResult:
    """The result in a run's folder.

    Raises:
        UserError: there is none, or it is of another schema.
    """
    try:
        result = RunResult.model_validate_json((folder / RESULT).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"There is no {folder / RESULT}: the run has not ended; start it again.") from error
    except ValueError as error:
        raise UserError(f"{folder / RESULT} is no result of schema {SCHEMA}: {error}.") from error
    return result


def _move_out(work: Path, path: Path) -> None:
    if (path / RESULT).exists():
        _remove_old(path)  # from here to the last line there is no result to trust
    for item in sorted(work.iterdir(), key=lambda item: item.name == RESULT):
        _move(item, path / item.name)


def _remove_old(path: Path) -> None:
    """Take away an older run's result, the files that it names and its curves, but not its logs."""
    try:
        checkpoint = read(path).student.checkpoint
    except UserError:
        checkpoint = None
    for name in (RESULT, CURVES, RANKS, *([checkpoint] if checkpoint else [])):
        (path / name).unlink(missing_ok=True)
    for file in (path / "tensorboard").glob("events.out.tfevents.*"):  # else TensorBoard draws two runs as one
        file.unlink()


def _move(item: Path, target: Path) -> None:
    """Move a file, or a folder into one that may be there already, file by file."""
    if item.is_dir() and target.is_dir():
        for inner in list(item.iterdir()):
            _move(inner, target / inner.name)
        item.rmdir()
    else:
        os.replace(item, target)
