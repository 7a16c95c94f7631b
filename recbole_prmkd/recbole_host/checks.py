"""What can be checked cheaply is checked here, before the first expensive step. Each refusal names the way out."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.evaluator.register import metric_types
from recbole.utils import EvaluatorType, ModelType, get_model

from recbole_prmkd.data import atomic_files
from recbole_prmkd.data.encoder import encoder_folder
from recbole_prmkd.data.images import check_images
from recbole_prmkd.data.text import text_fields
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.host_properties import is_host
from recbole_prmkd.recbole_host.keys import has_teachers, kind_of, teacher_settings
from recbole_prmkd.recbole_host.models import validates
from recbole_prmkd.recbole_host.objective_checks import check_objective
from recbole_prmkd.storage.disk import is_read_only
from recbole_prmkd.students.traits import Traits, traits_of
from recbole_prmkd.teachers import TEACHERS, teacher_class
from recbole_prmkd.teachers.auto import missing_text
from recbole_prmkd.teachers.item_start import source_of
from recbole_prmkd.teachers.pretrained import checkpoint_of
from recbole_prmkd.teachers.recbole_data import check_host
from recbole_prmkd.teachers.vectors import Vectors, check_vectors


def check_run(config: Config, output: Path) -> None:
    """Refuse a run that cannot end well.

    Args:
        output: folder of the result.
    Raises:
        UserError: with one sentence.
    """
    _check_data(config)
    if config["kd"] != "none" or validates(config):  # else stock RecBole reads no valid_metric
        _check_metrics(config)
    package = _traits(config).package
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"{config['model']} needs the package {package}, which is not installed: install it first.")
    _check_writable(output)
    for folder in (Path(config["kd_cache_dir"]), Path(config["kd_teacher_dir"])):
        if not is_read_only(folder):  # else what it holds may be all that is needed; what it lacks is refused later
            _check_writable(folder)
    if has_teachers(config):
        check_distillation(config)
    check_teachers(config)
    _check_guard(config)
    if config["model"] in TEACHERS and not TEACHERS[config["model"]].learns:
        raise UserError(f"{config['model']} is a teacher that is not trained: name it in kd_teachers.")


def check_teachers(config: Config) -> None:
    """Refuse teachers, or item vectors to start from, that cannot be prepared with these settings and files."""
    if config["kd_teacher_refresh"] != "full" and not config["kd_student_checkpoint"]:
        raise UserError(
            f"kd_teacher_refresh = {config['kd_teacher_refresh']} needs an earlier run: name its folder with "
            "--kd_student_checkpoint, or leave kd_teacher_refresh out."
        )
    teachers = list(config["kd_teachers"]) if has_teachers(config) else []
    start = source_of(config)
    if start not in ("none", "text"):
        if teacher_class(start).scores_all_items:
            raise UserError(
                f"kd_item_init = {start!r}, but {start} has no item vectors: write text, or another teacher."
            )
        teachers.append(start)
    if teachers:
        _check_split(config)
        _check_teachers(config, teachers)
    if start == "text":
        _check_text(config)


def check_pretraining(config: Config, output: Path) -> None:
    """The same for one data set to pre-train on."""
    _check_data(config)
    for folder in (output, Path(config["kd_cache_dir"])):
        if not is_read_only(folder):
            _check_writable(folder)
    _check_split(config)
    if TEACHERS[config["model"]].item_text != "nothing":
        _check_text(config)
    check_images(config)


def _check_data(config: Config) -> None:
    data = Path(config["data_path"])  # the data set's own folder by now
    suffixes = [f".{name}.inter" for name in config["benchmark_filename"] or []] or [".inter"]
    for suffix in suffixes:
        file = data / f"{config['dataset']}{suffix}"
        if not file.is_file():
            raise UserError(
                f"There is no {file}: put the data set's atomic files there, or name their parent folder "
                "with --data_path."
            )
        columns = _columns(file, config)
        for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"):
            needed = key != "TIME_FIELD" or (config["eval_args"]["order"] == "TO" and not config["benchmark_filename"])
            if needed and config[key] not in columns:
                raise UserError(
                    f"{file} has no column {config[key]!r} (it has {', '.join(columns)}): name it with --{key}=..."
                )
        loaded = _loaded(file, columns, config)
        if config["benchmark_filename"]:
            histories = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
            if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and histories not in columns:
                raise UserError(
                    f"{file} has no column {histories!r}, so a sequential model cannot read these pre-split files: put "
                    "each row's history there, or leave benchmark_filename out."
                )
        elif loaded and config["eval_args"]["order"] == "TO" and config["TIME_FIELD"] not in loaded:
            raise UserError(
                f"load_col leaves out {config['TIME_FIELD']!r}, by which interactions are ordered: add it to its inter."
            )


def _loaded(file: Path, columns: Mapping[str, str], config: Config) -> list[str] | None:
    """The columns of interactions that `load_col` names; None: all."""
    loaded = (config["load_col"] or {}).get("inter")
    if loaded == "*":
        return None
    for field in loaded or []:
        if field not in columns:
            said = f"{file} has no column {field!r}, which load_col names: it has {', '.join(columns)}."
            if has_teachers(config):
                raise UserError(said)
            getLogger().warning(said)  # stock RecBole reads the others
    return loaded


def _columns(file: Path, config: Config) -> dict[str, str]:
    separator, encoding = config["field_separator"], config["encoding"]
    try:
        columns = atomic_files.columns(file, separator, encoding)
    except LookupError as error:
        raise UserError(f"encoding = {encoding!r} is not known: write one such as utf-8 or latin-1.") from error
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error.strerror or error}; check its rights, or --data_path.") from error
    except UnicodeError as error:
        found = atomic_files.fault(file, separator, encoding)
        raise UserError(f"{found or f'{file} is not in the encoding {encoding}: name the right one'}.") from error
    if not any(columns):
        raise UserError(f"{file} is empty: its first line names the columns, such as user_id:token.")
    if any(name.startswith("\ufeff") for name in columns):
        raise UserError(f"{atomic_files.fault(file, separator, encoding)}.")
    return columns


def _check_metrics(config: Config) -> None:
    metric, _, cutoff = config["valid_metric"].partition("@")
    names = [name.lower() for name in config["metrics"]]
    if metric.lower() not in names:
        raise UserError(
            f"valid_metric {config['valid_metric']} is not among metrics {config['metrics']}: add it there."
        )
    if cutoff and (not cutoff.isdigit() or int(cutoff) not in config["topk"]):
        raise UserError(
            f"valid_metric {config['valid_metric']} has no cut-off among topk {config['topk']}: add it there."
        )
    if not cutoff and metric_types[metric.lower()] == EvaluatorType.RANKING and metric.lower() not in {"gauc"}:
        raise UserError(f"valid_metric {config['valid_metric']} needs a cut-off: write {metric}@{config['topk'][0]}.")


def check_distillation(config: Config) -> None:
    """Refuse a student that cannot be distilled into, and settings that make no loss."""
    _check_student(config)
    check_objective(config)


def _check_student(config: Config) -> None:
    staged = _traits(config).training == "stages"
    if _traits(config).training == "none" or config["MODEL_TYPE"] in {ModelType.TRADITIONAL, ModelType.DECISIONTREE}:
        raise UserError(
            f"{config['model']} is not trained by gradient, so there is nothing to distil into: use --kd=none."
        )
    if staged and config["train_stage"] != "finetune":
        raise UserError(
            f"{config['model']} learns in stages and is distilled in the last one: run train_stage="
            f"{config['train_stage']} with --kd=none, then --train_stage=finetune with --pre_model_path=FILE."
        )
    if staged and not Path(str(config["pre_model_path"])).is_file():
        raise UserError(
            f"There is no pre_model_path {config['pre_model_path']!r}: name the file that {config['model']}'s stage "
            "before this one left."
        )
    if config["eval_type"] != EvaluatorType.RANKING:
        raise UserError(
            f"Distillation ranks items, but metrics are {config['metrics']}: use Recall, MRR, NDCG, Hit or Precision."
        )


def _traits(config: Config) -> Traits:
    return traits_of(get_model(config["model"]))[0]


def _check_guard(config: Config) -> None:
    if not config["kd_guard"]:
        return
    if not has_teachers(config):
        getLogger().warning(f"kd_guard has no effect here: kd is {config['kd']}, so no student is distilled.")
        return
    if config["eval_step"] < 1:
        raise UserError(
            f"kd_guard keeps the best student on validation, but eval_step is {config['eval_step']}: set it to 1 or "
            "more, or leave kd_guard out."
        )
    missing_text(config)  # refuses settings of the text that cannot be used


def _check_split(config: Config) -> None:
    arguments = config["eval_args"]
    if config["benchmark_filename"]:
        return
    if arguments["order"] != "TO":
        raise UserError("Teachers read histories in time order: set order: TO in eval_args, or leave eval_args alone.")
    if arguments["mode"]["test"] != "full":
        raise UserError(
            f"Distillation is tested on all items, but eval_args has mode {arguments['mode']}: set mode: full, or, "
            "where each validation takes too long, mode: {valid: uni100, test: full}."
        )
    split = arguments["split"] or {}
    parts: Any = next(iter(split.values()), None)
    left_out = ("valid_and_test", "valid_only", "test_only")
    if parts not in left_out and not (isinstance(parts, list) and len(parts) == 3):
        raise UserError(
            f"eval_args.split {split} does not give training, validation and test: use {{'LS': 'valid_and_test'}} or "
            "{'RS': [0.8, 0.1, 0.1]}, or without validation {'LS': 'test_only'} or {'RS': [1.0, 0.0, 0.0]}."
        )


def _check_teachers(config: Config, teachers: Sequence[str]) -> None:
    if any(teacher_class(teacher).item_text != "nothing" for teacher in teachers):
        _check_text(config)
    check_images(config)
    for teacher in teachers:
        _check_teacher_keys(teacher, config)
        if is_host(kind_of(teacher)):
            check_host(teacher, config)
        checkpoint_of(teacher, config)
        if teacher_class(teacher) is Vectors:
            check_vectors(teacher, config)


def _check_teacher_keys(teacher: str, config: Config) -> None:
    """What a teacher's keys must be together, or what RecBole would find out too late."""
    own, prefix = teacher_settings(teacher, config.final_config_dict), f"kd_{teacher.lower()}_"
    if "n_heads" in own and own.get("hidden_size", 0) % own["n_heads"]:
        raise UserError(
            f"{prefix}hidden_size {own['hidden_size']} is no multiple of {prefix}n_heads {own['n_heads']}: change one."
        )
    metric, _, cutoff = own["valid_metric"].partition("@")
    ranks = metric_types.get(metric.lower()) == EvaluatorType.RANKING
    if not ranks or (metric.lower() != "gauc" and not (cutoff.isdecimal() and int(cutoff))):
        raise UserError(
            f"{prefix}valid_metric = {own['valid_metric']!r} is no metric of a ranking with its cut-off: write one "
            "such as NDCG@10."
        )


def _check_text(config: Config) -> None:
    text_fields(config)
    encoder_folder(config["kd_text_encoder"])


def _check_writable(folder: Path) -> None:
    existing = next((path for path in (folder, *folder.resolve().parents) if path.exists()), Path("/"))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"Cannot write to {folder}: {existing} is no folder that you may write to; name another one.")
