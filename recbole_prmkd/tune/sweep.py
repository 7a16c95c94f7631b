"""The whole sweep, as visible steps:

plan, checked -> folder -> Ray -> data, teachers, caches once -> trials -> trials.csv, best.yaml, figures -> winner

Trials see the validation set only; the test set is ranked once, by the plain run of best.yaml at the end.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from ray import tune
from recbole.config import Config
from recbole.utils import init_seed, set_color

from recbole_prmkd.data.text import prepare_item_text
from recbole_prmkd.errors import UserError
from recbole_prmkd.interruption import say_reuse
from recbole_prmkd.preparation import Steps, prepare, start_vectors
from recbole_prmkd.quick_start import run_recbole_prmkd
from recbole_prmkd.recbole_host.checks import check_run
from recbole_prmkd.recbole_host.config import user_setting, user_settings
from recbole_prmkd.recbole_host.ignored import warn_of_ignored
from recbole_prmkd.recbole_host.keys import has_teachers
from recbole_prmkd.recbole_host.run_files import no_command_line, run_logging
from recbole_prmkd.results.names import for_folder
from recbole_prmkd.storage.locks import alone
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.item_start import source_of
from recbole_prmkd.tune.cluster import check_address, check_room, cluster
from recbole_prmkd.tune.cross_checks import check_together
from recbole_prmkd.tune.encode import spread
from recbole_prmkd.tune.outcome import (
    ID,
    STATUS,
    Line,
    check_ended,
    draw_sweep,
    score_name,
    trials_of,
    winner_of,
    write_trials,
    write_winner,
)
from recbole_prmkd.tune.plan import (
    Plan,
    check_free,
    check_owner,
    differing,
    make_plan,
    read_plan,
    resume_option,
    with_trials,
    write_plan,
)
from recbole_prmkd.tune.search import ray_domain, tune_config
from recbole_prmkd.tune.settings import Pbt, read_sweep
from recbole_prmkd.tune.space import as_option
from recbole_prmkd.tune.trial import run_trial
from recbole_prmkd.tune.trial_inputs import TrialInputs, make_trial_inputs

WINNER_RUN = "winner"
_GPUS = "CUDA_VISIBLE_DEVICES"
_RAY = "ray"  # Ray's own folder inside the sweep's


def run_sweep(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    sweep_file: str | None = None,
    trials: int | None = None,
    ray_address: str | None = None,
    resume: str | bool | None = None,
    trust_folder: bool = False,
) -> dict[str, Any]:
    """Search settings of a student on Ray Tune, then train and test the winner once.

    The first four arguments are those of `run_recbole_prmkd`: fixed settings of all trials.

    Args:
        sweep_file: search space, search, scheduler and resources; see `hyper/`.
        trials: in place of the file's number; with `resume`: how many there are to be in all.
        ray_address: of a running cluster; None: this machine.
        resume: folder of a sweep to go on with; True: `kd_output_dir`.
        trust_folder: go on with another user's sweep; whoever can write to its folder can have code run.
    Returns:
        `output_dir`, `trials` (the lines of trials.csv), `best` (the winner's settings), `best_valid_score`, and
        `winner`, what `run_recbole_prmkd` returned for it.
    Raises:
        UserError: bad input, in one sentence, before Ray starts; or it was interrupted, or every trial failed.
    """
    gpus = os.environ.get(_GPUS)  # RecBole puts its default in, the first GPU alone
    check_address(ray_address)
    plan, folder = plan_and_folder(
        model, dataset, config_file_list, config_dict, sweep_file, trials, resume, trust_folder
    )
    base = for_all_trials(plan)
    if "gpu_id" not in plan.settings:
        os.environ.pop(_GPUS, None)
        os.environ.update({} if gpus is None else {_GPUS: gpus})  # Ray lends what it sees
    with cluster(ray_address), alone(folder):
        check_room(plan.sweep.resources.cpu, plan.sweep.resources.gpu)
        write_plan(plan, folder)
        say_reuse(f"{resume_option(folder)} goes on; finished trials are kept, others go on after their last epoch")
        with run_logging(base, folder):
            with spread(plan.sweep.resources.gpu) if ray_address else nullcontext():
                trial_inputs = _make_inputs(plan, base)
            ended = _run_trials(plan, base, trial_inputs, folder)
            write_trials(ended, folder)
            winner, score = winner_of(ended, base), score_name(base)
            draw_sweep(ended, plan.domains, score, base["valid_metric_bigger"], folder)
            best = write_winner(winner, plan, base, folder)  # last: a comparison takes it for the sweep's end
            settings = {domain.key: winner[domain.key] for domain in plan.domains}
            getLogger().info(set_color("winner", "yellow") + f": trial {winner[ID]}, {settings}")
    tested = _test(best, folder / WINNER_RUN, plan)
    if tested["best_valid_score"] != winner[score] and not isinstance(plan.sweep.scheduler, Pbt):
        getLogger().warning(
            f"The winner trained again has {tested['best_valid_score']} on validation, {winner[score]} in its trial: "
            "other hardware or threads round otherwise."
        )
    return {
        "output_dir": str(folder),
        "trials": ended,
        "best": settings,
        "best_valid_score": winner[score],
        "winner": tested,
    }


def plan_and_folder(
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str] | None,
    config_dict: Mapping[str, Any] | None,
    sweep_file: str | None,
    trials: int | None = None,
    resume: str | bool | None = None,
    trust_folder: bool = False,
) -> tuple[Plan, Path]:
    """A new sweep and its new folder, or one that goes on."""
    given = (model, dataset, config_file_list, config_dict)
    named = resume if isinstance(resume, str) else user_setting("kd_output_dir", config_file_list, config_dict)
    plan = None if sweep_file is None else make_plan(*given, read_sweep(Path(sweep_file), trials))
    if resume:
        if not named:
            raise UserError("Name the sweep to resume: --tune_resume=FOLDER, or --kd_output_dir=FOLDER --tune_resume.")
        beside = {"model": model, "dataset": dataset} | user_settings(config_file_list, config_dict)
        folder = Path(str(named)).resolve()
        stored = read_plan(folder)
        check_owner(folder, trust_folder)
        return _resumed(folder, stored, plan, beside, trials), folder
    if plan is None:
        raise UserError("Name a sweep file: --tune=hyper/sasrec.yaml.")
    folder = Path(str(named or _new_name(plan))).resolve()
    check_together(plan)
    _check_run(plan, folder)
    check_free(folder)
    return plan, folder


def _resumed(
    folder: Path, plan: Plan, given: Plan | None, beside: Mapping[str, Any], trials: int | None = None
) -> Plan:
    """The plan of the sweep in this folder, which goes on with its own settings and data alone.

    Args:
        given: the plan of the sweep file beside --tune_resume, if any; beside: what else the user has set.
        trials: how many there are to be in all; None: no further ones.
    """
    if given is not None and (trials is not None or plan.earlier):  # the file's number is of the sweep's beginning
        same = given.sweep.model_copy(update={"trials": plan.sweep.trials})
        given = given.model_copy(update={"sweep": same})
    ignored = [key for key, value in beside.items() if value is not None and key != "kd_output_dir"]
    wrong = differing(given, plan) if given else ignored
    if wrong:
        raise UserError(
            f"The sweep in {folder} goes on with its own settings, which {', '.join(f'--{key}' for key in wrong)} "
            f"cannot change: use {resume_option(folder)} alone, or start a new sweep."
        )
    _check_run(plan, folder)
    if plan.data_digest() != plan.data:
        raise UserError(
            f"The files of {plan.dataset} have changed since the sweep in {folder} began: bring them back, or start "
            "a new sweep."
        )
    return plan if trials is None else with_trials(plan, trials)


def for_all_trials(plan: Plan) -> Config:
    """The configuration that prepares for every trial: all teachers that any of them may ask for."""
    configs = plan.configs("kd", "kd_teachers")
    distilled = [config for config in configs if has_teachers(config)]
    base = (distilled or configs)[0]
    base["kd_teachers"] = list(dict.fromkeys(name for config in distilled or [base] for name in config["kd_teachers"]))
    return base


def _check_run(plan: Plan, folder: Path) -> None:
    """Reject what a plain run would reject."""
    config = for_all_trials(plan)
    config["kd_loss"] = "kl"  # the space's first values need not make a loss together
    check_run(config, folder)
    warn_of_ignored(config)


def _new_name(plan: Plan) -> Path:
    """A folder of no other sweep."""
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    kd = plan.settings.get("kd", "none")
    return Path("runs") / f"{plan.model}-{for_folder(plan.dataset)}-{kd}-tune-{now}-{uuid.uuid4().hex[:6]}"


def _make_inputs(plan: Plan, base: Config) -> TrialInputs:
    """Data, teachers, their caches and item vectors for all trials."""
    steps = Steps()
    for domain in plan.domains:
        getLogger().info(f"Search space: {domain}")
    init_seed(base["seed"], base["reproducibility"])
    base["kd_item_init"] = "none"
    if base["kd_teacher_check"] == "drop":
        base["kd_teacher_check"] = "warn"  # each trial leaves out its own
    prepared = prepare(base, steps)
    if prepared.split.sizes[1] == 0:
        raise UserError(
            "A sweep chooses by the validation, but the validation part is empty: give it examples in eval_args.split, "
            "and train on everything afterwards with best.yaml."
        )
    if plan.model in TEACHERS and TEACHERS[plan.model].item_text == "vectors":
        prepare_item_text(base, prepared.split.item_tokens)  # a student that reads texts itself
    vectors = {}
    for source in {source_of(config) for config in plan.configs("kd", "kd_teachers", "kd_item_init")} - {"none"}:
        base["kd_item_init"] = source
        vectors[source] = start_vectors(base, prepared.split, steps, prepared.teachers)
    return make_trial_inputs(prepared, vectors)


def _run_trials(plan: Plan, base: Config, trial_inputs: TrialInputs, folder: Path) -> list[Line]:
    """Run the trials, or what is left of them; further ones as a search that knows of those before."""
    getLogger("tensorboardX").setLevel("WARNING")  # else it says at each epoch that a metric's @ becomes _
    lines: list[Line] = []
    for batch, planned in enumerate(plan.batches):
        ray_folder = folder / (f"{_RAY}-{batch + 1}" if batch else _RAY)
        results = _tuner(plan, base, trial_inputs, ray_folder, lines).fit()
        check_ended(tune.ExperimentAnalysis(str(ray_folder)).trials, planned, folder)
        lines += trials_of([results[number] for number in range(len(results))], plan, base, folder)
    return sorted(lines, key=lambda line: line[ID])


def _tuner(plan: Plan, base: Config, trial_inputs: TrialInputs, ray_folder: Path, before: list[Line]) -> tune.Tuner:
    """Ray's Tuner, new or as it was left in its folder; before: the trials of earlier searches."""
    sweep = plan.sweep
    trainable = tune.with_parameters(run_trial, plan=plan, trial_inputs=trial_inputs, sweep=ray_folder.parent)
    trainable = tune.with_resources(trainable, {"cpu": sweep.resources.cpu, "gpu": sweep.resources.gpu})
    if tune.Tuner.can_restore(str(ray_folder)):
        return tune.Tuner.restore(str(ray_folder), trainable, resume_unfinished=True)
    max_length = max(1, max(plan.values("epochs")) // base["eval_step"])
    score = score_name(base)
    tried = [
        (
            {domain.key: as_option(line[domain.key]) for domain in plan.domains},
            None if line[STATUS] == "failed" else line[score],
        )
        for line in before
    ]
    return tune.Tuner(
        trainable,
        param_space={domain.key: ray_domain(domain, grid=sweep.search == "grid") for domain in plan.domains},
        tune_config=tune_config(sweep, base, max_length, tried),
        run_config=tune.RunConfig(
            name=ray_folder.name,
            storage_path=str(ray_folder.parent),
            failure_config=tune.FailureConfig(max_failures=sweep.max_failures),
            # A population copies its members' checkpoints, so some older ones must outlive the copy.
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if isinstance(sweep.scheduler, Pbt) else 1),
            verbose=1,
        ),
    )


def _test(best: Path, folder: Path, plan: Plan) -> dict[str, Any]:
    """Train the winner once more as a plain run, and test it; as many torch threads as in its trial."""
    before = torch.get_num_threads()
    torch.set_num_threads(plan.sweep.resources.threads)
    try:
        with no_command_line():
            return run_recbole_prmkd(config_file_list=[str(best)], config_dict={"kd_output_dir": str(folder)})
    finally:
        torch.set_num_threads(before)
