"""What a sweep leaves: trials.csv, one line a trial; best.yaml, a config file that trains the winner again; figures."""

import hashlib
import warnings
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import yaml
from matplotlib import pyplot
from optuna.visualization import matplotlib as plots
from ray.tune.search.optuna import OptunaSearch
from recbole.config import Config

from recbole_prmkd.errors import UserError
from recbole_prmkd.results.names import for_csv, printable
from recbole_prmkd.storage.disk import remove, replacing
from recbole_prmkd.tune.plan import Plan, resume_option
from recbole_prmkd.tune.search import ray_domain
from recbole_prmkd.tune.settings import Pbt
from recbole_prmkd.tune.space import Domain, as_option
from recbole_prmkd.tune.trial import BEST, BEST_EPOCH, SETTINGS, failure, finished, trial_folder
from recbole_prmkd.tune.trial import ERROR as FAULT

TRIALS, WINNER = "trials.csv", "best.yaml"
IMPORTANCE, PARALLEL = "importance.svg", "parallel_coordinates.svg"
ID, STATUS, EPOCH, SECONDS, ERROR = "id", "status", "best epoch", "seconds", "error"  # columns beside the settings
Line = dict[str, Any]  # of trials.csv
_CHECKSUM = b" Checksum of the other lines, for comparisons:"


def score_name(base: Config) -> str:
    """The column with each trial's best validation score; None in a trial that reported none."""
    return f"valid {base['valid_metric'].lower()}"


def trials_of(results: Sequence[Any], plan: Plan, base: Config, folder: Path) -> list[Line]:
    """A line for each of Ray's results, in the order of their ids.

    Status is finished, stopped (by the scheduler) or failed; the settings have their own types.
    """
    lines = []
    for result in results:
        name = Path(result.path).name
        # finished.json decides where there is one: PBT gives new settings to a trial at its last report, and Ray has
        # these, though no student was trained with them.
        ended, failed = finished(trial_folder(folder, name)), failure(trial_folder(folder, name))
        metrics = (result.metrics or {}) | (ended or {})
        said = str(result.error or "").split("\n")
        status = "failed" if failed or result.error else "stopped" if ended is None else "finished"
        line: Line = {ID: name, STATUS: status}
        line |= plan.searched(result.config or metrics["config"]) | metrics.get(SETTINGS, {})
        line |= {EPOCH: metrics.get(BEST_EPOCH), score_name(base): metrics.get(BEST)}
        line[f"last {score_name(base)}"] = metrics.get(base["valid_metric"].lower())
        # The last line of an error says what went wrong in the trial.
        error = failed[FAULT] if failed else next((text.strip() for text in reversed(said) if text.strip()), "")
        lines.append({**line, SECONDS: metrics.get("time_total_s"), ERROR: error})
    return sorted(lines, key=lambda line: line[ID])


def check_ended(trials: Sequence[Any], planned: int, folder: Path) -> None:
    """Name no winner while the search is not over: Ray returns from Ctrl-C as from the end.

    Args:
        trials: as Ray has noted them on disk; in memory it calls all of them ended.
        planned: how many there were to be.
    Raises:
        UserError: a trial has not ended, or was not sampled yet.
    """
    ended = sum(trial.is_finished() for trial in trials)
    if ended < max(planned, len(trials)):
        raise UserError(
            f"The sweep was interrupted after {ended} of {planned} trials: {resume_option(folder)} goes on."
        )


def winner_of(trials: Sequence[Line], base: Config) -> Line:
    """The trial with the best validation score, stopped ones included.

    Raises:
        UserError: every trial failed.
    """
    score = score_name(base)
    scored = [line for line in trials if line[STATUS] != "failed" and line[score] is not None]
    if not scored:
        first = next((line[ERROR] for line in trials if line[ERROR]), "no trial reported a score")
        raise UserError(f"All {len(trials)} trials failed, the first with: {first}. {TRIALS} holds each one's error.")
    return (max if base["valid_metric_bigger"] else min)(scored, key=lambda line: line[score])


def write_trials(trials: Sequence[Line], folder: Path) -> None:
    """trials.csv."""
    frame = pd.DataFrame(trials).astype({EPOCH: "Int64", SECONDS: float}).round({SECONDS: 2})
    for_csv(frame).to_csv(folder / TRIALS, index=False, errors="replace")


def write_winner(winner: Line, plan: Plan, base: Config, folder: Path) -> Path:
    """best.yaml: every setting that is not a default, by `--config_files=best.yaml`."""
    content = {"model": plan.model, "dataset": plan.dataset, **plan.settings}
    content |= {domain.key: winner[domain.key] for domain in plan.domains}
    score = f"{base['valid_metric'].lower()} {winner[score_name(base)]} on validation, epoch {winner[EPOCH]}"
    notes = [f"Trial {winner[ID]} of {folder.resolve()}: {score}."]
    notes.append(f"Trained with {plan.sweep.resources.threads} torch threads; other numbers may round otherwise.")
    if isinstance(plan.sweep.scheduler, Pbt):
        notes.append("Its settings changed during training (PBT); these are the last, so a run with them differs.")
    path = folder / WINNER
    text = "".join(f"# {printable(note)}\n" for note in notes)
    text += yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    with replacing(path) as part:
        part.write_bytes(_with_checksum(text.encode()))
    return path


def read_winner(folder: Path) -> dict[str, Any] | None:
    """What `best.yaml` holds; None where there is none, or it is not what `write_winner` wrote.

    One of an earlier version has no checksum and is read as it is.
    """
    try:
        written = (folder / WINNER).read_bytes()
        text = b"".join(line for line in written.splitlines(keepends=True) if _CHECKSUM not in line)
        if text != written and _with_checksum(text) != written:
            raise ValueError("its checksum differs")
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError("it holds no settings")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        getLogger().warning(f"{folder / WINNER} is not used: {error}; the sweep writes it anew.")
        return None
    return content


def _with_checksum(text: bytes) -> bytes:
    """The text after a comment with its checksum."""
    return b"#%s %s\n" % (_CHECKSUM, hashlib.sha256(text).hexdigest().encode()) + text


def draw_sweep(trials: Sequence[Line], domains: Sequence[Domain], score: str, bigger: bool, folder: Path) -> None:
    """Both figures of the column `score`; what Optuna cannot draw, as from too few trials, is left out with a message.

    The importances are those of fANOVA (Hutter et al., ICML 2014), whatever the search was.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    before = pyplot.get_backend()
    pyplot.switch_backend("agg")  # files only, no window
    try:
        for name in (PARALLEL, IMPORTANCE):
            try:
                _draw(name, as_study(trials, domains, score, bigger), score.removeprefix("valid "))
                if name == PARALLEL:  # an axis for each key, each with labels of its own
                    pyplot.gcf().set_size_inches(max(8.0, 1.9 * len(domains)), 6)
                pyplot.savefig(folder / name, bbox_inches="tight")
            except (RuntimeError, ValueError) as error:  # matplotlib's, of a value that it takes for a formula, too
                getLogger().warning(f"{name} is left out: {error}")
                remove(folder / name)
    finally:
        pyplot.close("all")
        pyplot.switch_backend(before)


def _draw(name: str, study: optuna.Study, metric: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == PARALLEL:
            plots.plot_parallel_coordinate(study, target_name=metric)
        else:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            plots.plot_param_importances(study, evaluator=evaluator, target_name=metric)


def as_study(trials: Sequence[Line], domains: Sequence[Domain], score: str, bigger: bool) -> optuna.Study:
    """The trials that have a score, as Optuna holds them.

    Raises:
        ValueError: a value that Optuna refuses.
    """
    study = optuna.create_study(direction="maximize" if bigger else "minimize")
    distributions = OptunaSearch.convert_search_space({domain.key: ray_domain(domain) for domain in domains})
    for line in trials:
        if line[STATUS] != "failed" and line[score] is not None:
            values = {domain.key: as_option(line[domain.key]) for domain in domains}
            study.add_trial(optuna.trial.create_trial(params=values, distributions=distributions, value=line[score]))
    return study
