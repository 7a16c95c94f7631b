"""The whole run, as visible steps:

config -> data -> item text -> teachers -> knowledge cache -> student -> distillation -> evaluation -> result

The order of RecBole's own `run_recbole` is kept call by call, so that `kd: none` gives its metrics and weights bit
for bit. What is made on the way (item vectors, teachers, knowledge) is reused where it still matches; the student is
seeded after it, so a cold and a warm run give the same student.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.data.transform import construct_transform
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType, get_environment, get_flops, get_model, get_trainer, init_seed, set_color
from torch import Tensor

from recbole_prmkd import result as results
from recbole_prmkd.checks import check_run
from recbole_prmkd.config import load_config
from recbole_prmkd.dataset import Split, load_split
from recbole_prmkd.evaluation import evaluate_unseen, plain
from recbole_prmkd.host import quiet_trainer, run_logging
from recbole_prmkd.knowledge import Knowledge, build_or_load, open_knowledge, unit_items
from recbole_prmkd.objective import Objective
from recbole_prmkd.plots import CURVES, draw_distillation
from recbole_prmkd.prefixes import WindowLoader, shared_prefixes, why_not_shared
from recbole_prmkd.result import RunResult, StepResult, StudentResult, TeacherResult
from recbole_prmkd.student import StudentScorer, clear_graph_cache
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.data import TeacherData, teacher_data
from recbole_prmkd.teachers.fit import FittedTeacher, fit_or_load, start
from recbole_prmkd.text import item_text_vectors, prepare_item_text
from recbole_prmkd.trainer import Curriculum, distillation_trainer
from recbole_prmkd.warm_start import warm_start


class Steps:
    """Times each step and says when it starts and whether it was reused."""

    def __init__(self) -> None:
        self.results: dict[str, StepResult] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[dict[str, Any]]:
        """Run a step; set `reused` in the dict that it yields."""
        started, state = time.time(), {"reused": None}
        getLogger().info(set_color(f"Step: {name}", "green"))
        yield state
        seconds = time.time() - started
        self.results[name] = StepResult(seconds=seconds, reused=state["reused"])
        how = {None: "done", True: "reused", False: "made"}[state["reused"]]
        getLogger().info(f"Step: {name} {how} in {seconds:.1f} s")


def run_recbole_prmkd(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Train and test a RecBole model, distilled from pre-trained recommendation models if `kd` says so.

    The arguments are those of `recbole.quick_start.run_recbole`, and like it this reads the command line.

    Returns:
        RecBole's result dict (best_valid_score, valid_score_bigger, best_valid_result, test_result), and beside it
        `output_dir` and `result`, the content of result.json.
    Raises:
        UserError: bad input, in one sentence; nothing was written.
    """
    config = load_config(model, dataset, config_file_list, config_dict)
    output = _output_dir(config)
    check_run(config, output)
    with results.output_folder(output) as folder, run_logging(config, folder):
        returned, run = _run(config, folder, saved)
        if run.distillation:
            title = f"{config['model']} on {config['dataset']}, kd={config['kd']}"
            draw_distillation(run.distillation, folder / CURVES, title)
        results.write(folder, run)
    getLogger().info(f"Result: {output / results.RESULT}")
    return {**returned, "output_dir": str(output), "result": run.model_dump(mode="json", by_alias=True)}


def _run(config: Config, folder: Path, saved: bool) -> tuple[dict[str, Any], RunResult]:
    steps = Steps()
    init_seed(config["seed"], config["reproducibility"])
    getLogger().info(config)
    with steps("data"):
        split = load_split(config)

    teachers: list[FittedTeacher] = []
    knowledge = None
    unknown: dict[str, dict[str, int]] = {}
    if config["kd"] != "none":
        teachers, knowledge, unknown = _knowledge(config, split, steps)
    start_vectors = _start_vectors(config, split, steps, teachers) if config["kd_item_init"] != "none" else None

    with steps("student"):
        init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
        student = get_model(config["model"])(config, split.train_data._dataset).to(config["device"])
        if config["model"] in TEACHERS:
            start(student, config["model"], config)
        if start_vectors is not None:
            warm_start(student, config, split.dataset, start_vectors)
        getLogger().info(student)
        _log_flops(student, config, split)
        trainer = quiet_trainer(_trainer_class(config), config, student, folder)

    with steps("distillation" if _distils(config) else "training"), ExitStack() as stack:
        train_data = _training_data(config, split, student, stack)
        if knowledge is not None:
            _distil(config, split, knowledge, student, trainer)
        started = time.time()
        best_score, best_valid = trainer.fit(
            train_data, split.valid_data, saved=saved, show_progress=config["show_progress"]
        )
        seconds = time.time() - started

    with steps("evaluation"):
        test = trainer.evaluate(split.test_data, load_best_model=saved, show_progress=config["show_progress"])
        unseen = {
            part: evaluate_unseen(trainer, config, data._dataset, rows) or plain(metrics)
            for part, data, rows, metrics in (
                ("valid", split.valid_data, split.valid, best_valid),
                ("test", split.test_data, split.test, test),
            )
        }
        clear_graph_cache(student)
    getLogger().info(get_environment(config).draw())
    getLogger().info(set_color("best valid ", "yellow") + f": {best_valid}")
    getLogger().info(set_color("test result", "yellow") + f": {test}")

    returned = {
        "best_valid_score": best_score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": best_valid,
        "test_result": test,
    }
    run = RunResult(
        config=_plain_config(config),
        versions=results.versions(),
        seed=config["seed"],
        device=str(config["device"]),
        dataset=_counts(config, split),
        student=StudentResult(
            model=config["model"],
            valid=plain(best_valid),
            test=plain(test),
            valid_unseen=unseen["valid"],
            test_unseen=unseen["test"],
            parameters=sum(p.numel() for p in student.parameters() if p.requires_grad),
            train_seconds=seconds,
            epochs=len(trainer.train_loss_dict),
            checkpoint=Path(trainer.saved_model_file).name if saved else None,
            train_losses=[float(loss) for loss in trainer.train_loss_dict.values()],
        ),
        teachers={teacher.name: _teacher_result(teacher, unknown[teacher.name]) for teacher in teachers},
        steps=steps.results,
        distillation=getattr(trainer, "history", []),
    )
    return returned, run


def _knowledge(
    config: Config, split: Split, steps: Steps
) -> tuple[list[FittedTeacher], Knowledge, dict[str, dict[str, int]]]:
    """Item text, teachers and their knowledge of the training rows; each taken from disk where it still matches."""
    wanted = {TEACHERS[name].item_text for name in config["kd_teachers"]}
    if wanted != {"nothing"}:
        with steps("text") as state:
            state["reused"] = prepare_item_text(config, split.item_tokens, vectors="vectors" in wanted)
    data: TeacherData = teacher_data(split, config["kd_teacher_seed"])
    teachers, folders = [], []
    for name in config["kd_teachers"]:
        with steps(f"teacher {name}") as state:
            teacher = fit_or_load(name, config, data)
            teachers.append(teacher)
            state["reused"] = teacher.reused
        with steps(f"knowledge {name}") as state:
            stored, state["reused"] = build_or_load(teacher, data, config)
            folders.append(stored)
            _warn_of_unknown(name, stored.notes, split)
    knowledge = open_knowledge(teachers, folders, data, config)
    return teachers, knowledge, {t.name: folder.notes for t, folder in zip(teachers, folders, strict=True)}


def _start_vectors(config: Config, split: Split, steps: Steps, teachers: Sequence[FittedTeacher]) -> Tensor:
    """What `kd_item_init` names: vectors of all items by the student's ids, [n_items, D]; zero where there is none."""
    source = config["kd_item_init"]
    with steps(f"item vectors {source}") as state:
        if source == "text":
            state["reused"] = prepare_item_text(config, split.item_tokens)
            return item_text_vectors(config, split.dataset)
        data = teacher_data(split, config["kd_teacher_seed"])
        named = [teacher for teacher in teachers if teacher.name == source]
        teacher = named[0] if named else fit_or_load(source, config, data)
        state["reused"] = teacher.reused
        return unit_items(teacher)[data.canonical]


def _warn_of_unknown(name: str, notes: Mapping[str, Any], split: Split) -> None:
    if notes["unknown_rows"] or notes["unknown_items"]:
        getLogger().warning(
            f"{name} knows nothing of {notes['unknown_rows']} of {len(split.train)} training rows (no history) and of "
            f"{notes['unknown_items']} of {len(split.item_tokens)} items (no text or image): its weight is zero there."
        )


def _trainer_class(config: Config) -> type:
    host = get_trainer(config["MODEL_TYPE"], config["model"])
    return host if config["kd"] == "none" else distillation_trainer(host)


def _log_flops(student: AbstractRecommender, config: Config, split: Split) -> None:
    """RecBole's count, which fails for some models and data (DSSM with number features): no reason to stop."""
    try:
        flops = get_flops(student, split.dataset, config["device"], getLogger(), construct_transform(config))
    except Exception as error:  # whatever the counter or the model raises on its one made-up row
        getLogger().warning(f"FLOPs are not known: RecBole's counter fails on {config['model']} ({error}).")
    else:
        getLogger().info(f"FLOPs: {flops}")


def _training_data(config: Config, split: Split, student: AbstractRecommender, stack: ExitStack) -> Any:
    """RecBole's training loader, or windows where shared prefixes are wanted and the student allows them."""
    wanted = config["kd_shared_prefixes"]
    if wanted is None:
        wanted = _distils(config) and config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if not wanted:
        return split.train_data
    reason = why_not_shared(student, config, split.train)
    if reason is not None:
        getLogger().warning(f"{config['model']} is trained row by row, as in RecBole: {reason}.")
        return split.train_data
    stack.enter_context(shared_prefixes(student))
    return WindowLoader(config, split.train_data._dataset, split.train)


def _distils(config: Config) -> bool:
    return config["kd"] != "none" and config["kd_weight"] > 0


def _distil(config: Config, split: Split, knowledge: Knowledge, student: AbstractRecommender, trainer: Any) -> None:
    if not _distils(config):
        getLogger().info("kd_weight is 0: the student trains alone, without kd_loss and curriculum.")
        return
    scorer = StudentScorer(student, config, split.train_data._dataset, split.train)
    objective = Objective(config, knowledge, split.train, split.later, scorer)
    trainer.distil(objective, Curriculum(config, split.train) if config["kd_curriculum"] != "none" else None)


def _output_dir(config: Config) -> Path:
    if config["kd_output_dir"]:
        return Path(config["kd_output_dir"])
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return Path("runs") / f"{config['model']}-{config['dataset']}-{config['kd']}-{now}"


def _plain_config(config: Config) -> dict[str, Any]:
    """Every setting as JSON can hold it."""
    simple = (str, int, float, bool, type(None), list, dict)
    return {key: value if isinstance(value, simple) else str(value) for key, value in config.final_config_dict.items()}


def _counts(config: Config, split: Split) -> dict[str, Any]:
    return {
        "name": config["dataset"],
        "users": len(split.user_tokens),
        "items": len(split.item_tokens),
        "train_rows": len(split.train),
        "valid_rows": len(split.valid),
        "test_rows": len(split.test),
    }


def _teacher_result(teacher: FittedTeacher, notes: Mapping[str, Any]) -> TeacherResult:
    return TeacherResult(
        **teacher.metrics,
        parameters=teacher.parameters,
        seconds=teacher.seconds,
        holdout=teacher.holdout,
        checkpoint=str(teacher.checkpoint) if teacher.checkpoint else None,
        unknown_rows=notes["unknown_rows"],
        unknown_items=notes["unknown_items"],
    )
