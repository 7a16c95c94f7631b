"""One trial: the code of a plain run on the trial inputs, without the test, reporting after every validation.

A trial's folder, `trials/<id>/`, has its log, its TensorBoard curves and, once it has trained to its end,
`finished.json`, so that a resumed sweep does not train it again, whatever its driver had not yet written down. A trial
that fails because of its settings (a loss that is NaN, heads that do not divide the width) has `failed.json` and is not
tried again; a machine's fault is raised, so that Ray tries again. Both files hold the settings too: PBT may give a
trial the student and settings of another, which is a new training.
"""

import os
import tempfile
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from recbole.config import Config

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import progress
from recbole_prmkd.recbole_host.boundary import recbole_errors
from recbole_prmkd.recbole_host.checks import check_distillation
from recbole_prmkd.recbole_host.keys import has_teachers
from recbole_prmkd.recbole_host.memory import keep_freed_memory
from recbole_prmkd.recbole_host.out_of_memory import is_out_of_memory
from recbole_prmkd.recbole_host.run_files import run_logging
from recbole_prmkd.storage import store
from recbole_prmkd.storage.disk import is_fault
from recbole_prmkd.storage.json_files import read_object, read_sealed, write_sealed
from recbole_prmkd.training import make_trainer, train
from recbole_prmkd.tune.plan import Plan
from recbole_prmkd.tune.trial_inputs import TrialInputs

FINISHED, FAILED = "finished.json", "failed.json"
_NOTE = "checksum.json"  # of a checkpoint
# What each report holds beside the validation metric under its own name and the epoch's numbers of distillation.
BEST, BEST_EPOCH, EPOCH = "best_score", "best_epoch", "epoch"
SETTINGS, ERROR = "settings", "error"  # in these files alone


def run_trial(sampled: Mapping[str, Any], plan: Plan, trial_inputs: TrialInputs, sweep: Path) -> None:
    """Train a student with these settings; what Ray Tune calls.

    Args:
        sampled: Ray's values of the search space.
        sweep: the sweep's folder.
    """
    folder = trial_folder(sweep, tune.get_context().get_trial_id())
    searched = plan.searched(sampled)
    settings, ended = store.as_json(searched), finished(folder)
    if ended is not None and ended.pop(SETTINGS) == settings:
        tune.report(ended)
        return
    if (failed := failure(folder)) is not None and failed[SETTINGS] == settings:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).unlink(missing_ok=True)
    torch.set_num_threads(plan.sweep.resources.threads)
    keep_freed_memory()
    # The GPUs that Ray lent to this trial; RecBole would take the first of the machine.
    gpus = {"gpu_id": os.environ.get("CUDA_VISIBLE_DEVICES", "0")} if plan.sweep.resources.gpu else {}
    try:
        _train(plan.config(searched | gpus), folder, trial_inputs, settings)
    except Exception as error:
        if _may_pass(error):
            raise
        # Returned from, not raised: Ray would train the same again.
        said = " ".join(str(error).split())
        log = folder / "log"  # has its traceback
        message = said if isinstance(error, UserError) else f"{type(error).__name__}: {said} (traceback: {log})"
        write_sealed(folder / FAILED, {ERROR: message, SETTINGS: settings})


def _train(config: Config, folder: Path, trial_inputs: TrialInputs, settings: Mapping[str, Any]) -> None:
    config["show_progress"], config["kd_rebuild"] = False, False  # what trials share was computed before them
    if has_teachers(config):
        check_distillation(config)  # a plain run of best.yaml would reject it
    checkpoint, state = tune.get_checkpoint(), None
    if checkpoint is not None:
        with checkpoint.as_directory() as kept:
            state = _state(Path(kept))
    with run_logging(config, folder):
        try:
            prepared = trial_inputs.prepared(config)
            with recbole_errors(f"train {config['model']} with these settings", config):
                trainer = make_trainer(config, prepared, folder)
                report = _reporter(config, folder, settings)
                train(config, prepared, trainer, saved=False, after_epoch=report, state=state)
        except Exception:
            getLogger().exception("The trial failed.")
            raise


def _state(kept: Path) -> dict[str, Any] | None:
    """The state in a checkpoint; None where it is damaged, so that the trial starts anew."""
    note = kept / _NOTE
    try:
        if note.exists() and read_sealed(note) != {progress.FILE: store.file_digest(kept / progress.FILE)}:
            raise ValueError(f"the checksum of {progress.FILE} differs")
    except (OSError, ValueError) as error:
        getLogger().warning(f"{kept} is not used: {error}; the trial starts anew.")
        return None
    return progress.load(kept)


def _may_pass(error: Exception) -> bool:
    """Whether the same settings may train another time: a machine's fault, not the settings'."""
    if isinstance(error, UserError):
        cause = error.__cause__
        return cause is not None and (is_fault(cause) or is_out_of_memory(cause))
    return isinstance(error, OSError | ray.exceptions.RayError) or is_out_of_memory(error) or "CUDA" in str(error)


def trial_folder(sweep: Path, trial: str) -> Path:
    """Where a trial writes."""
    return sweep / "trials" / trial


def finished(folder: Path) -> dict[str, Any] | None:
    """Settings and numbers of the trial that has trained to its end in this folder; None where none has."""
    return _ended(folder / FINISHED)


def failure(folder: Path) -> dict[str, Any] | None:
    """Settings and error of the trial that these settings failed in this folder; None where none has."""
    return _ended(folder / FAILED)


def _ended(file: Path) -> dict[str, Any] | None:
    """What one of these files holds; None where there is none, or a damaged one, so that the trial trains again."""
    try:
        content = read_object(file)
    except (OSError, ValueError):
        return None
    return content if SETTINGS in content else None


def _reporter(config: Config, folder: Path, settings: Mapping[str, Any]) -> Any:
    """Reports an epoch's validation score, with the training's state as checkpoint; `settings`: what is searched."""

    def report(trainer: Any, train_data: Any, epoch: int, score: float) -> None:
        numbers = trainer.history[-1] if getattr(trainer, "history", []) else {}
        metrics = {
            **numbers,
            config["valid_metric"].lower(): float(score),
            BEST: float(trainer.best_valid_score),
            BEST_EPOCH: epoch - trainer.cur_step * trainer.eval_step,
            EPOCH: epoch,
        }
        if epoch + trainer.eval_step >= trainer.epochs or trainer.cur_step > trainer.stopping_step:
            write_sealed(folder / FINISHED, {**metrics, SETTINGS: settings})
        with tempfile.TemporaryDirectory() as kept:
            progress.save(progress.captured(trainer, train_data, epoch), Path(kept))
            write_sealed(Path(kept) / _NOTE, {progress.FILE: store.file_digest(Path(kept) / progress.FILE)})
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(kept))

    return report
