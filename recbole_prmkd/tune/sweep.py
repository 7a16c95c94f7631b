"""The whole sweep, as visible steps:

plan, checked -> folder -> Ray -> data, teachers, knowledge once -> trials -> trials.csv, best.yaml, plots -> winner

Trials see the validation rows only; the test rows are ranked once, by the plain run of best.yaml at the end.
"""

import itertools
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
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
from recbole_prmkd.preparation import Steps, prepare, start_vectors
from recbole_prmkd.quick_start import run_recbole_prmkd
from recbole_prmkd.recbole_host.checks import check_run
from recbole_prmkd.recbole_host.config import user_setting, user_settings
from recbole_prmkd.recbole_host.run_files import no_command_line, run_logging
from recbole_prmkd.students.warm_start import source_of
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.ensemble import ENSEMBLE
from recbole_prmkd.tune.cluster import check_address, check_room, cluster
from recbole_prmkd.tune.cross_checks import check_together
from recbole_prmkd.tune.encode import spread
from recbole_prmkd.tune.figures import draw_sweep
from recbole_prmkd.tune.outcome import Trial, check_ended, trials_of, winner_of, write_trials, write_winner
from recbole_prmkd.tune.plan import Plan, check_data, differing, make_plan, read_plan, write_plan
from recbole_prmkd.tune.population import check_population
from recbole_prmkd.tune.search import param_space, tune_config
from recbole_prmkd.tune.settings import Pbt, read_sweep
from recbole_prmkd.tune.trial import Job, run_trial
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
) -> dict[str, Any]:
    """Search settings of a student on Ray Tune, then train and test the winner once.

    The first four arguments are those of `run_recbole_prmkd`: fixed settings of all trials.

    Args:
        sweep_file: search space, search, scheduler and resources; see `hyper/`.
        trials: in place of the file's number.
        ray_address: of a running cluster; None: this machine.
        resume: folder of an interrupted sweep to go on with; True: `kd_output_dir`.
    Returns:
        `output_dir`, `trials` (one dict each), `best` (the winner's settings), `best_valid_score`, and `winner`, what
        `run_recbole_prmkd` returned for it.
    Raises:
        UserError: bad input, in one sentence, before Ray starts; or it was interrupted, or every trial failed.
    """
    gpus = os.environ.get(_GPUS)  # RecBole puts its default in, the first GPU alone
    check_address(ray_address)
    plan, folder = plan_and_folder(model, dataset, config_file_list, config_dict, sweep_file, trials, resume)
    base = _widest(plan)
    if "gpu_id" not in plan.settings:
        os.environ.pop(_GPUS, None)
        os.environ.update({} if gpus is None else {_GPUS: gpus})  # Ray lends what it sees
    with ExitStack() as stack:
        try:
            stack.enter_context(cluster(ray_address))
            check_room(plan.sweep.resources.cpu, plan.sweep.resources.gpu)
        except UserError:
            if not resume:
                shutil.rmtree(folder, ignore_errors=True)  # nothing was started
            raise
        stack.enter_context(run_logging(base, folder))
        ended = _trials(plan, base, folder, distributed=ray_address is not None)
        write_trials(ended, base, folder)
        winner = winner_of(ended, base)
        best = write_winner(winner, plan, base, folder)
        draw_sweep(ended, plan.sweep.domains, base["valid_metric"], base["valid_metric_bigger"], folder)
        getLogger().info(set_color("winner", "yellow") + f": trial {winner.name}, {winner.settings}")
    tested = _test(best, folder / WINNER_RUN, plan)
    if tested["best_valid_score"] != winner.score and not isinstance(plan.sweep.scheduler, Pbt):
        getLogger().warning(
            f"The winner trained again has {tested['best_valid_score']} on validation, {winner.score} in its trial: "
            "other hardware or threads round otherwise."
        )
    return {
        "output_dir": str(folder),
        "trials": [vars(trial) for trial in ended],
        "best": winner.settings,
        "best_valid_score": winner.score,
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
) -> tuple[Plan, Path]:
    """A new sweep and its new folder, or an interrupted one's."""
    if resume:
        folder = _resumed_folder(resume, config_file_list, config_dict)
        plan = read_plan(folder)
        if sweep_file is None:
            beside = {"model": model, "dataset": dataset, **user_settings(config_file_list, config_dict)}
            _refuse_beside({**beside, "tune_trials": trials, "kd_output_dir": None}, folder)
        else:
            sweep = read_sweep(Path(sweep_file), trials)
            changed = differing(make_plan(model, dataset, config_file_list, config_dict, sweep), plan)
            if changed:
                raise UserError(
                    f"The sweep in {folder} had other settings ({', '.join(changed)}): resume it by "
                    f"--tune_resume={folder} alone, or start another one."
                )
        _check_run(plan, folder)
        check_data(plan, folder)
        return plan, folder
    if sweep_file is None:
        raise UserError("Name a sweep file: --tune=hyper/sasrec.yaml.")
    plan = make_plan(model, dataset, config_file_list, config_dict, read_sweep(Path(sweep_file), trials))
    folder = _new_folder(plan, config_file_list, config_dict)
    if ENSEMBLE in plan.values("kd"):
        raise UserError("kd=ensemble trains nothing, so there is nothing to search: run it without --tune.")
    check_together(plan)
    _check_run(plan, folder)
    if isinstance(plan.sweep.scheduler, Pbt):
        check_population(plan)
    plan = plan.with_data()
    write_plan(plan, folder)
    return plan, folder


def _check_run(plan: Plan, folder: Path) -> None:
    """What a plain run would be refused for."""
    config = _widest(plan)
    config["kd_loss"] = "kl"  # checked with the other values of the space, of which the first need not fit together
    check_run(config, folder)


def _refuse_beside(given: Mapping[str, Any], folder: Path) -> None:
    """Refuse settings that a resumed sweep would not hear."""
    named = [f"--{key}" for key, value in given.items() if value is not None]
    if named:
        raise UserError(
            f"The sweep in {folder} goes on with its own settings, so {', '.join(named)} would change nothing: use "
            f"--tune_resume={folder} alone, or start another sweep."
        )


def _resumed_folder(
    resume: str | bool, config_file_list: Sequence[str] | None, config_dict: Mapping[str, Any] | None
) -> Path:
    named = user_setting("kd_output_dir", config_file_list, config_dict) if resume is True else resume
    if not named:
        raise UserError("Name the sweep to resume: --tune_resume=FOLDER, or --kd_output_dir=FOLDER --tune_resume.")
    return Path(str(named)).resolve()


def _new_folder(plan: Plan, config_file_list: Sequence[str] | None, config_dict: Mapping[str, Any] | None) -> Path:
    named = user_setting("kd_output_dir", config_file_list, config_dict)
    if named:
        return Path(str(named)).resolve()
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    kd = plan.settings.get("kd", "none")
    return (Path("runs") / f"{plan.model}-{plan.dataset}-{kd}-tune-{now}-{uuid.uuid4().hex[:6]}").resolve()


def _starts(plan: Plan) -> set[str]:
    """What the items of any trial's student may start from."""
    deciding = [domain for domain in plan.sweep.domains if domain.key in {"kd", "kd_teachers", "kd_item_init"}]
    keys, first = [domain.key for domain in deciding], plan.first
    drawn = itertools.product(*(domain.witnesses for domain in deciding))
    return {source_of(plan.config({**first, **dict(zip(keys, values, strict=True))})) for values in drawn}


def _widest(plan: Plan) -> Config:
    """The configuration that prepares for every trial: all teachers that any of them may ask for."""
    kds = [kd for kd in plan.values("kd") if kd != "none"]
    several = any(domain.key == "kd_teachers" for domain in plan.sweep.domains)
    # `single` takes the first teacher alone.
    widest = next((kd for kd in kds if kd != "single"), "mean" if several else "single")
    settings = plan.first | ({"kd": widest} if kds else {})
    if several:
        settings["kd_teachers"] = list(dict.fromkeys(name for names in plan.values("kd_teachers") for name in names))
    return plan.config(settings)


def _trials(plan: Plan, base: Config, folder: Path, distributed: bool) -> list[Trial]:
    """Prepare once (`distributed`: with the teachers' passes on the cluster), then run what is left of the trials."""
    getLogger("tensorboardX").setLevel("WARNING")  # else it says at each epoch that a metric's @ becomes _
    with spread(plan.sweep.resources.gpu) if distributed else nullcontext():
        handover = _prepared(plan, base)
    job = Job(plan, handover, folder)
    resources = {"cpu": plan.sweep.resources.cpu, "gpu": plan.sweep.resources.gpu}
    trainable = tune.with_resources(tune.with_parameters(run_trial, job=job), resources)
    where = folder / _RAY
    if tune.Tuner.can_restore(str(where)):
        tuner = tune.Tuner.restore(str(where), trainable, resume_unfinished=True)
    else:
        max_length = max(plan.values("epochs")) // base["eval_step"]
        tuner = tune.Tuner(
            trainable,
            param_space=param_space(plan.sweep),
            tune_config=tune_config(plan.sweep, base, max(max_length, 1)),
            run_config=tune.RunConfig(
                name=_RAY,
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=plan.sweep.max_failures),
                # A population copies its members' checkpoints, so some older ones must outlive the copy.
                checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if isinstance(plan.sweep.scheduler, Pbt) else 1),
                verbose=1,
            ),
        )
    results = tuner.fit()
    check_ended(tune.ExperimentAnalysis(str(where)).trials, plan.sweep.planned, folder)
    return trials_of(results, plan, folder)


def _prepared(plan: Plan, base: Config) -> TrialInputs:
    """Data, teachers, knowledge and item vectors for all trials."""
    steps = Steps()
    for domain in plan.sweep.domains:
        getLogger().info(f"Search space: {domain}")
    init_seed(base["seed"], base["reproducibility"])
    base["kd_item_init"] = "none"
    prepared = prepare(base, steps)
    if plan.model in TEACHERS and TEACHERS[plan.model].item_text == "vectors":
        prepare_item_text(base, prepared.split.item_tokens)  # a student that reads texts itself
    vectors = {}
    for source in _starts(plan) - {"none"}:
        base["kd_item_init"] = source
        vectors[source] = start_vectors(base, prepared.split, steps, prepared.teachers)
    return make_trial_inputs(prepared, vectors)


def _test(best: Path, folder: Path, plan: Plan) -> dict[str, Any]:
    """Train the winner once more as a plain run, and test it; as many torch threads as in its trial."""
    before = torch.get_num_threads()
    torch.set_num_threads(plan.sweep.resources.threads)
    try:
        with no_command_line():
            return run_recbole_prmkd(config_file_list=[str(best)], config_dict={"kd_output_dir": str(folder)})
    finally:
        torch.set_num_threads(before)
