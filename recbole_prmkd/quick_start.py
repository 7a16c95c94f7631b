"""The whole run, as visible steps:

config -> data -> item text -> teachers -> teacher cache -> student -> distillation -> evaluation -> result

The order of RecBole's own `run_recbole` is kept call by call, so that `kd: none` gives its metrics and weights bit
for bit. What is made on the way (item vectors, teachers, teacher cache) is reused where it still matches. The student
is seeded after it, so a cold and a warm run give the same student.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.utils import get_environment, init_seed, set_color
from torch import distributed

from recbole_prmkd.data.split import Split
from recbole_prmkd.errors import NotFinite, UserError
from recbole_prmkd.guard import GUARD, Timed, guards, keep_best
from recbole_prmkd.preparation import Prepared, Steps, prepare
from recbole_prmkd.recbole_host.boundary import recbole_errors
from recbole_prmkd.recbole_host.checks import check_run
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.finite import weights_are_finite, weights_sentence
from recbole_prmkd.recbole_host.ignored import warn_of_ignored
from recbole_prmkd.recbole_host.memory import forget_peak_memory, peak_memory_mb
from recbole_prmkd.recbole_host.run_files import run_logging
from recbole_prmkd.results.covered import student_ranks
from recbole_prmkd.results.evaluation import evaluate_unseen, leaves_out, plain
from recbole_prmkd.results.groups import noted_ranks, student_groups
from recbole_prmkd.results.names import for_folder
from recbole_prmkd.results.plots import draw_distillation
from recbole_prmkd.results.resume import Progress, clear
from recbole_prmkd.results.run_folder import CURVES, RANKS, RESULT, TEXT, UNFINISHED, output_folder, write_result
from recbole_prmkd.results.run_result import Measured, run_result
from recbole_prmkd.results.schema import KDResult, RunResult, StudentResult
from recbole_prmkd.results.target_ranks import save_ranks
from recbole_prmkd.serving.carry_over import check_start
from recbole_prmkd.serving.kept_data import DATA, keep_data
from recbole_prmkd.serving.new_items import keep_text
from recbole_prmkd.storage.disk import remove
from recbole_prmkd.students.adapter import clear_graph_cache
from recbole_prmkd.teachers.ensemble import ENSEMBLE, serve
from recbole_prmkd.teachers.item_start import source_of
from recbole_prmkd.training import distils, make_trainer, ranking, train


def run_recbole_prmkd(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Train and test a RecBole model, distilled from pre-trained recommendation models if `kd` says so.

    The arguments are those of `recbole.quick_start.run_recbole`, and like it this reads the command line. `model` may
    also be a class of your own.

    Returns:
        RecBole's result dict (best_valid_score, valid_score_bigger, best_valid_result, test_result), and beside it
        `output_dir` and `result`, the content of result.json.
    Raises:
        UserError: bad input, in one sentence; nothing was written.
    """
    config = load_config(model, dataset, config_file_list, config_dict)
    output = output_dir(config)
    if config["local_rank"] > 0:  # the first process on this machine writes the result
        return _follow(config, output, saved)
    check_run(config, output)
    check_start(config)
    files = (RESULT, CURVES, RANKS, DATA, TEXT, f"{config['model']}.pth")
    with output_folder(output, files=files) as folder, run_logging(config, folder):
        returned, run = _run(config, folder, saved)
        _draw(config, run, folder / CURVES)
        write_result(folder, run)
        remove(folder / GUARD)
        clear(folder)  # the state of a training that has its result
    getLogger().info(f"Result: {output / RESULT}")
    return {**returned, "output_dir": str(output), "result": run.model_dump(mode="json", by_alias=True)}


def _draw(config: Config, run: RunResult, file: Path) -> None:
    """The figure of a run that distilled; no finished run is lost because its figure cannot be drawn."""
    if not run.distillation:
        return
    try:
        draw_distillation(run.distillation, file, f"{config['model']} on {config['dataset']}, kd={config['kd']}")
    except Exception as error:
        getLogger().warning(f"{file.name} is left out: {error}")
        remove(file)


def _follow(config: Config, output: Path, saved: bool) -> dict[str, Any]:
    """The same run in a further process of one training: its files are of no use, the weights are the first one's."""
    with tempfile.TemporaryDirectory() as folder, run_logging(config, Path(folder)):
        returned, _ = _run(config, Path(folder), saved, output / UNFINISHED)
    return returned


def _run(
    config: Config, folder: Path, saved: bool, checkpoints: Path | None = None
) -> tuple[dict[str, Any], RunResult]:
    """checkpoints: where another process keeps the best epoch's weights; none: in `folder`."""
    steps = Steps()
    with recbole_errors("start with these settings", config):
        init_seed(config["seed"], config["reproducibility"])
        getLogger().info(config)
    warn_of_ignored(config)
    keeps = saved and checkpoints is None and config["kd"] != ENSEMBLE
    prepared = prepare(config, steps, partial(keep_data, folder / DATA, config) if keeps else None)
    student = partial(_student, saved=saved, checkpoints=checkpoints)
    guard = None
    if config["kd"] == ENSEMBLE:
        kept = distilled = _served(config, prepared, steps)
    elif guards(config):
        kept, distilled, guard = keep_best(config, prepared, steps, folder, student)
    else:
        kept = distilled = student(config, prepared, steps, folder)
    if config["kd"] != ENSEMBLE:
        getLogger().info(get_environment(config).draw())
        getLogger().info(set_color("best valid ", "yellow") + f": {kept.valid}")
        getLogger().info(set_color("test result", "yellow") + f": {kept.test}")
    returned = {
        "best_valid_score": kept.score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": kept.valid,
        "test_result": kept.test,
    }
    return returned, run_result(config, prepared, steps, kept, distilled.history, guard)


def _student(
    config: Config,
    prepared: Prepared,
    steps: Timed,
    folder: Path,
    place: str = "",
    *,
    saved: bool,
    checkpoints: Path | None,
) -> Measured:
    """Train one student and test it; place: the folder inside `folder` and `checkpoints` that is its own."""
    split = prepared.split
    building = recbole_errors(f"build {config['model']} with these settings", config)
    with steps("student"), building:
        trainer = make_trainer(config, prepared, folder / place)
        if checkpoints is not None:
            trainer.saved_model_file = str(checkpoints / place / Path(trainer.saved_model_file).name)
        student = trainer.model
    if saved and checkpoints is None and prepared.start_vectors is not None and source_of(config) == "text":
        keep_text(folder / place / TEXT, config, prepared.start_vectors)
    best_score, best_valid, seconds, valid_scores = _fit(config, prepared, trainer, steps, saved, folder / place)
    with steps("evaluation"), _testing(config, trainer), ranking(config, split, student):
        with noted_ranks(trainer, config) as noted:
            test = trainer.evaluate(split.test_data, load_best_model=saved, show_progress=config["show_progress"])
        if not weights_are_finite(student):
            if distils(config):
                raise NotFinite(weights_sentence(trainer))
            getLogger().warning(weights_sentence(trainer))  # stock RecBole tests it all the same
        valid_unseen = _unseen(trainer, config, split, "valid", best_valid)
        with noted_ranks(trainer, config) as noted_unseen:
            test_unseen = _unseen(trainer, config, split, "test", test)
        groups = student_groups(config, split, noted, noted_unseen)
        if config["kd_save_ranks"] and test:
            save_ranks(trainer, config, split, folder / place)
        ranks = student_ranks(trainer, config, split, [teacher.covered_test for teacher in prepared.teachers])
        clear_graph_cache(student)
    measured = StudentResult(
        model=config["model"],
        valid=plain(best_valid),
        test=plain(test),
        valid_unseen=valid_unseen,
        test_unseen=test_unseen,
        parameters=sum(p.numel() for p in student.parameters() if p.requires_grad),
        train_seconds=seconds,
        epochs=len(trainer.train_loss_dict),
        checkpoint=file.name if (file := Path(trainer.saved_model_file)).is_file() else None,
        train_losses=[float(loss) for loss in trainer.train_loss_dict.values()],
        valid_scores=valid_scores,
        kd=_kd_result(trainer),
        carried_over=trainer.carried_over,
        groups=groups,
    )
    memory = peak_memory_mb(config["device"])
    return Measured(measured, best_score, best_valid, test, memory, getattr(trainer, "history", []), ranks)


@contextmanager
def _testing(config: Config, trainer: Any) -> Iterator[None]:
    """The boundary of the test; after 0 epochs the weights that RecBole has saved are none to keep."""
    try:
        with recbole_errors(f"test {config['model']} with these settings", config):
            yield
    except UserError:
        if not trainer.train_loss_dict:
            remove(Path(trainer.saved_model_file))
        raise


def _served(config: Config, prepared: Prepared, steps: Steps) -> Measured:
    """The teachers together in the place of a student."""
    with steps("evaluation"):
        assert prepared.teacher_cache is not None, "an ensemble has teachers"
        served = serve(config, prepared.split, prepared.teachers, prepared.teacher_cache.trust)
        if config["kd_save_ranks"]:
            getLogger().warning(f"No {RANKS}: with kd={ENSEMBLE} there is no student whose ranks could be saved.")
    score = served.valid.get(config["valid_metric"].lower(), -math.inf)  # as RecBole has it without validation
    return Measured(served, score, served.valid, served.test, peak_memory_mb(config["device"]))


def _fit(
    config: Config, prepared: Prepared, trainer: Any, steps: Timed, saved: bool, folder: Path
) -> tuple[float, dict[str, float], float, list[float]]:
    """Train the student, on from what a killed run has left; best score and metrics, seconds, validation scores."""
    training = recbole_errors(f"train {config['model']} with these settings", config)
    with steps("distillation" if distils(config) else "training"), training:
        forget_peak_memory(config["device"])
        # Only a folder that the user has named is found again.
        resumes = bool(config["kd_output_dir"]) and bool(config["single_spec"])
        state = Progress(config, prepared, folder)

        def after_epoch(trainer: Any, train_data: Any, epoch: int, score: float) -> None:
            state.valid_scores.append(float(score))
            if resumes:
                state.keep(trainer, train_data, epoch)

        best_score, best_valid, seconds = train(
            config,
            prepared,
            trainer,
            saved,
            after_epoch=after_epoch,
            state=state.load(saved) if resumes else None,
            before=state.watch if resumes else None,
        )
        seconds += state.seconds
        if not config["single_spec"]:
            distributed.barrier()  # the first process has saved its weights
    tested = prepared.split.sizes[2] > 0
    if saved and tested and not Path(trainer.saved_model_file).is_file():
        raise UserError(
            f"No validation of {config['model']} gave a score: {config['valid_metric']} is not defined on this split; "
            "name another valid_metric, or change eval_args or threshold."
        )
    return best_score, best_valid, seconds, state.valid_scores


def _unseen(trainer: Any, config: Config, split: Split, part: str, metrics: dict[str, Any] | None) -> dict[str, float]:
    """Metrics of a part with the user's earlier items left out; examples are built only where RecBole's own differ."""
    loader = getattr(split, f"{part}_data")
    if metrics is None or leaves_out(config, loader):  # None: RecBole has not ranked it
        return plain(metrics)
    return plain(evaluate_unseen(trainer, config, loader, getattr(split, part)))


def _kd_result(trainer: Any) -> KDResult | None:
    objective = getattr(trainer, "objective", None)
    if objective is None or objective.student.family is None:
        return None
    shares = [epoch.get("teaching", 0.0) for epoch in trainer.history]
    return KDResult(**objective.summary(), teaching=sum(shares) / len(shares) if shares else None)


def output_dir(config: Config) -> Path:
    """The folder of the run's result."""
    if config["kd_output_dir"]:
        return Path(config["kd_output_dir"])
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return Path("runs") / f"{config['model']}-{for_folder(config['dataset'])}-{config['kd']}-{now}"
