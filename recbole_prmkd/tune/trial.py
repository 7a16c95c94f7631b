"""One trial: the code of a plain run on what was handed over, without the test, reporting after every validation.

A trial's folder, `trials/<id>/`, has its log, its TensorBoard curves and, once it has trained to its end,
`finished.json`, so that a sweep that is resumed does not train it again whatever its driver had still to note. The file
has the settings too: in a population a trial may go on with others from another's student, which is a training anew.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune
from recbole.config import Config

from recbole_prmkd.recbole_host import progress
from recbole_prmkd.recbole_host.checks import check_distillation
from recbole_prmkd.recbole_host.memory import keep_freed_memory
from recbole_prmkd.recbole_host.run_files import run_logging
from recbole_prmkd.teacher_cache import store
from recbole_prmkd.training import make_trainer, train
from recbole_prmkd.tune.plan import Plan
from recbole_prmkd.tune.trial_inputs import TrialInputs

FINISHED = "finished.json"
# What each report holds beside the validation metric under its own name and the epoch's numbers of distillation.
BEST, BEST_EPOCH, EPOCH = "best_score", "best_epoch", "epoch"
SETTINGS = "settings"  # in finished.json alone


@dataclass(frozen=True)
class Job:
    """What all trials are called with. folder: of the sweep."""

    plan: Plan
    trial_inputs: TrialInputs
    folder: Path


def run_trial(values: Mapping[str, Any], job: Job) -> None:
    """Train a student with these settings; what Ray Tune calls."""
    folder = trial_folder(job.folder, tune.get_context().get_trial_id())
    settings, known = store.as_json(job.plan.drawn(values)), finished(folder)
    if known is not None and known.pop(SETTINGS, settings) == settings:
        tune.report(known)
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(job.plan.sweep.resources.threads)
    keep_freed_memory()
    config = job.plan.config({**job.plan.drawn(values), **_device(job.plan)})
    config["show_progress"] = False
    if config["kd"] != "none":
        check_distillation(config)  # what best.yaml would be refused for, no trial trains
    checkpoint, state = tune.get_checkpoint(), None
    if checkpoint is not None:
        with checkpoint.as_directory() as kept:
            state = progress.load(Path(kept))
    with run_logging(config, folder):
        prepared = job.trial_inputs.prepared(config)
        trainer = make_trainer(config, prepared, folder)
        train(config, prepared, trainer, saved=False, after_epoch=_reporter(config, folder, settings), state=state)


def trial_folder(sweep: Path, trial: str) -> Path:
    """Where a trial writes."""
    return sweep / "trials" / trial


def finished(folder: Path) -> dict[str, Any] | None:
    """Settings and numbers of the trial that has trained to its end in this folder; None where none has.

    A folder of an earlier version has no settings.
    """
    file = folder / FINISHED
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _device(plan: Plan) -> dict[str, Any]:
    """The GPUs that Ray lent to this trial; RecBole would take the first of the machine."""
    return {"gpu_id": os.environ.get("CUDA_VISIBLE_DEVICES", "0")} if plan.sweep.resources.gpu else {}


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
        last = epoch + trainer.eval_step >= trainer.epochs or trainer.cur_step > trainer.stopping_step
        if last:
            store.write_json(folder / FINISHED, {**metrics, SETTINGS: settings})
        with tempfile.TemporaryDirectory() as kept:
            progress.save(progress.captured(trainer, train_data, epoch), Path(kept))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(kept))

    return report
