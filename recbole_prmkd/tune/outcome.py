"""What a sweep leaves: trials.csv, one line a trial, and best.yaml, a config file that trains the winner again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from ray import tune
from recbole.config import Config

from recbole_prmkd.errors import UserError
from recbole_prmkd.tune.plan import Plan
from recbole_prmkd.tune.settings import Pbt
from recbole_prmkd.tune.trial import BEST, BEST_EPOCH, SETTINGS, finished, trial_folder

TRIALS, WINNER = "trials.csv", "best.yaml"


@dataclass(frozen=True)
class Trial:
    """One trial at its end.

    status: finished, stopped (by the scheduler) or failed. score: best validation score, None without a report.
    """

    name: str
    status: str
    settings: dict[str, Any]
    score: float | None
    epoch: int | None
    seconds: float | None
    error: str


def trials_of(results: tune.ResultGrid, plan: Plan, folder: Path) -> list[Trial]:
    """All trials, by name."""
    return sorted((_trial(results[i], plan, folder) for i in range(len(results))), key=lambda trial: trial.name)


def check_ended(trials: Sequence[Any], planned: int, folder: Path) -> None:
    """Refuse to name a winner while the search is not over: Ray returns from Ctrl-C as from the end.

    Args:
        trials: as Ray has noted them on disk; in memory it calls all of them ended.
        planned: how many there were to be.
    Raises:
        UserError: one has not ended, or was not drawn.
    """
    ended = sum(trial.is_finished() for trial in trials)
    if ended < max(planned, len(trials)):
        raise UserError(f"The sweep was interrupted after {ended} of {planned} trials: --tune_resume={folder} goes on.")


def winner_of(trials: list[Trial], base: Config) -> Trial:
    """The trial with the best validation score, stopped ones included.

    Raises:
        UserError: every trial failed.
    """
    scored = [trial for trial in trials if trial.status != "failed" and trial.score is not None]
    if not scored:
        first = next((trial.error for trial in trials if trial.error), "no trial reported a score")
        raise UserError(f"All {len(trials)} trials failed, the first with: {first}. {TRIALS} holds each one's error.")
    sign = 1 if base["valid_metric_bigger"] else -1
    return max(scored, key=lambda trial: sign * (trial.score or 0.0))


def write_trials(trials: list[Trial], base: Config, folder: Path) -> None:
    """trials.csv."""
    metric = f"valid {base['valid_metric'].lower()}"
    rows = [
        {
            "id": trial.name,
            "status": trial.status,
            **trial.settings,
            "best epoch": trial.epoch,
            metric: trial.score,
            "seconds": None if trial.seconds is None else round(trial.seconds, 2),
            "error": trial.error,
        }
        for trial in trials
    ]
    frame = pd.DataFrame(rows).astype({"best epoch": "Int64"})
    frame.to_csv(folder / TRIALS, index=False)


def write_winner(winner: Trial, plan: Plan, base: Config, folder: Path) -> Path:
    """best.yaml: every setting that is not a default, by `--config_files=best.yaml`."""
    content = {"model": plan.model, "dataset": plan.dataset, **plan.settings, **winner.settings}
    score = f"{base['valid_metric'].lower()} {winner.score} on validation, epoch {winner.epoch}"
    notes = [f"Trial {winner.name} of {folder.resolve()}: {score}."]
    notes.append(f"Trained with {plan.sweep.resources.threads} torch threads; other numbers may round otherwise.")
    if isinstance(plan.sweep.scheduler, Pbt):
        notes.append("Its settings changed during training (PBT); these are the last, so a run with them differs.")
    path = folder / WINNER
    text = "".join(f"# {note}\n" for note in notes) + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")
    return path


def _trial(result: Any, plan: Plan, folder: Path) -> Trial:
    name = Path(result.path).name
    # What has trained to its end tells itself what that was: Ray's own note has the settings that a population gave
    # to a trial at its last report, with which it may not have trained any more.
    ended = finished(trial_folder(folder, name))
    metrics = (result.metrics or {}) | (ended or {})
    score = metrics.get(BEST)
    return Trial(
        name=name,
        status="failed" if result.error else "finished" if ended is not None else "stopped",
        settings=plan.drawn(result.config or metrics["config"]) | metrics.get(SETTINGS, {}),
        score=None if score is None else float(score),
        epoch=metrics.get(BEST_EPOCH),
        seconds=metrics.get("time_total_s"),
        error=_reason(result.error),
    )


def _reason(error: Exception | None) -> str:
    """The last line of an error, which names what went wrong in the trial."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1] if lines else (type(error).__name__ if error else "")
