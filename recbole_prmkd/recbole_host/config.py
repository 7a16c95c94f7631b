"""A run's configuration: RecBole's own Config, with the kd_ keys checked and defaults put below the user's settings.

The result is a plain `recbole.config.Config`, so that a checkpoint, which pickles it, loads in stock RecBole.
Order of precedence, weakest first: RecBole's properties, our defaults, the preset of `kd`, the protocol, then the
user's files, dict and command line.
"""

import copy
import importlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from recbole.config import Config
from recbole.utils import ModelType, get_model

from recbole_prmkd.data import atomic_files, processed
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import keys, plugins
from recbole_prmkd.recbole_host.boundary import blamed
from recbole_prmkd.recbole_host.config_files import check_config_file
from recbole_prmkd.recbole_host.models import register_model
from recbole_prmkd.recbole_host.processes import any_device, on_cpu
from recbole_prmkd.recbole_host.shapes import check_plain, check_settings
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.auto import AUTO, MINUTES, choose_teachers
from recbole_prmkd.teachers.controls import Uniform
from recbole_prmkd.teachers.pretrained import start_from_shipped

RANKING_ARGS = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
_PATHS = re.compile(
    r"kd_(cache_dir|teacher_dir|text_file|item_images|\w+_checkpoint|vectors_(\w+_)?(items|users|rows))"
)
RANKING_METRICS = {"metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision"], "valid_metric": "MRR@10"}


@dataclass(frozen=True)
class HostView:
    """What stock RecBole would make of the user's settings.

    user: files < dict < command line, merged; stock: RecBole's properties for model and data set.
    """

    model: str
    dataset: str
    model_type: ModelType
    user: dict[str, Any]
    stock: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.user.get(key, self.stock.get(key))


def load_config(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> Config:
    """The checked configuration of a run; the arguments are those of `recbole.quick_start.run_recbole`.

    model may be a class of the user's own, which RecBole's look-ups then find by its name.

    Raises:
        UserError: unknown model, unreadable file, or a kd_ key that is unknown, mistyped or out of range.
    """
    view = host_view(model, dataset, config_file_list, config_dict)
    check_settings(view.user, view.stock)
    given = keys.checked(view.user, TEACHERS)
    if view.model in TEACHERS:
        keys.check_own(view.model, view.user)
    kd = given.get("kd", keys.defaults()["kd"])
    settings = {**keys.defaults(), **_preset(kd), **given}
    below = _start_repairs(view)
    if keys.ranks_all_alike({**settings, "kd": kd}):
        below = _ranking(view) | below
    if not isinstance(view["use_gpu"], int):
        raise UserError(f"use_gpu is {view['use_gpu']!r}: write --use_gpu=True or --use_gpu=False.")
    if "local_rank" in view.user and "nproc" not in view.user:
        raise UserError("local_rank is for the processes that --nproc starts: leave it out, or write --nproc.")
    if "local_rank" in view.user and "gpu_id" not in view.user:
        below["gpu_id"] = ",".join(map(str, range(view.user["nproc"])))
    with tempfile.TemporaryDirectory() as folder, any_device(bool(view["use_gpu"])):
        # As the first file, so that every setting of the user's stands above it.
        file = Path(folder) / "below.yaml"
        file.write_text(yaml.safe_dump(below), encoding="utf-8")
        try:
            config = _recbole_config(view, [str(file), *(config_file_list or [])], config_dict)
        except AssertionError as error:  # the only one there, without a word
            raise UserError(
                f"{view['nproc']} processes need as many GPUs in gpu_id: leave it out, or name them (--gpu_id=0,1)."
            ) from error
    # RecBole is done with the class. A checkpoint pickles its Config, which a class of the user's own would tie to the
    # user's module, and a class inside a function could not be pickled at all.
    del config.model_class
    if on_cpu(config["use_gpu"]):
        config["device"] = torch.device("cpu")  # RecBole forgets use_gpu, and its processes have none but CUDA's
    return _with_keys(config, settings)


def _recbole_config(view: HostView, files: Sequence[str], config_dict: Mapping[str, Any] | None) -> Config:
    try:
        return Config(view.model, view.dataset, list(files), copy.deepcopy(dict(config_dict or {})))
    except (AssertionError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of whatever kind: RecBole reads the settings here, and nothing else
        said = " ".join(
            [*str(error).rstrip(".").split(), *(f"({shown})" for shown in blamed(error, view.user, {}, view.stock))]
        )
        lists = "a list is --topk=[5,10] or --metrics=['NDCG','Recall']"
        raise UserError(f"RecBole refuses the settings: {said}; {lists}.") from error


def _preset(kd: str) -> dict[str, Any]:
    """What `kd` sets; of another package's method it is checked as a user's settings are."""
    preset = keys.preset(kd)
    if kd not in plugins.found():
        return preset
    try:
        return keys.checked(preset, TEACHERS)
    except UserError as error:
        package = plugins.package(plugins.found()[kd])
        raise UserError(
            f"The preset of the KD method {kd}, of the package {package}, cannot be used. {error}"
        ) from error


def complete(config: Config) -> Config:
    """A Config that RecBole's own code made, with the kd_ keys checked and defaults and preset filled in; in place.

    Raises:
        UserError: a kd_ key is unknown, mistyped or out of range.
    """
    # A teacher's own properties hold our defaults, which must not stand above the preset of `kd`.
    stock = config.internal_config_dict
    set_by_user = {
        key: value
        for key, value in config.final_config_dict.items()
        if key in config.external_config_dict or key not in stock or value != stock[key]
    }
    given = keys.checked(set_by_user, TEACHERS)
    return _with_keys(config, {**keys.defaults(), **_preset(given.get("kd", "none")), **given})


def _with_keys(config: Config, settings: Mapping[str, Any]) -> Config:
    config.parameters["Distillation"] = list(settings)
    for key, value in settings.items():
        config[key] = value
    if config["kd_teacher_seed"] is None:
        config["kd_teacher_seed"] = config["seed"]
    if config["kd"] in keys.WITHOUT_TEACHERS:
        config.left_out_teachers = [name for name in config["kd_teachers"] if name not in (AUTO, Uniform.__name__)]
        config["kd_teachers"] = [Uniform.__name__]
    if keys.has_teachers(config) and config["kd_teachers"] == [AUTO]:
        config["kd_teachers"], config.why_teachers = choose_teachers(config)
        if config["kd_teacher_minutes"] == AUTO:
            config["kd_teacher_minutes"] = MINUTES
        config.why_teachers += start_from_shipped(config)
    if config["kd_teacher_minutes"] == AUTO:
        config["kd_teacher_minutes"] = None
    if config["kd"] == "single":
        config["kd_teachers"] = config["kd_teachers"][:1]
    return config


def host_view(
    model: str | type | None,
    dataset: str | None,
    config_file_list: Sequence[str] | None,
    config_dict: Mapping[str, Any] | None,
) -> HostView:
    """RecBole's own reading of the settings, by its own methods, before it checks them."""
    host = _read_settings(config_file_list, config_dict)
    name = model or host.external_config_dict.get("model")
    data = dataset or host.external_config_dict.get("dataset")
    check_plain({**host.external_config_dict, "model": name, "dataset": data})
    if not name or not data:
        raise UserError("Name a model and a data set: --model=SASRec --dataset=ml-100k.")
    if not isinstance(name, str | type) or not isinstance(data, str):
        raise UserError(f"model = {name!r} and dataset = {data!r} must be names: write them in quotes.")
    model_class = find_model(name)
    name = model_class.__name__
    host._load_internal_config_dict(name, model_class, data)
    return HostView(name, data, model_class.type, host.external_config_dict, host.internal_config_dict)


def with_absolute_paths(settings: Mapping[str, Any], base: Config) -> dict[str, Any]:
    """The user's settings with every path absolute, for processes that may run in another folder.

    base: the configuration that these settings give.
    """
    absolute = dict(settings)
    for key in filter(_PATHS.fullmatch, base.parameters["Distillation"]):
        if base[key] and not (key.endswith("_checkpoint") and base[key] in (keys.SCRATCH, keys.SHIPPED)):
            absolute[key] = str(Path(base[key]).resolve())
    if base["kd_text_encoder"] and Path(base["kd_text_encoder"]).is_dir():
        absolute["kd_text_encoder"] = str(Path(base["kd_text_encoder"]).resolve())
    return absolute


def user_setting(key: str, config_file_list: Sequence[str] | None, config_dict: Mapping[str, Any] | None = None) -> Any:
    """What the user has set for one key in files, dict or command line; None where nothing."""
    return user_settings(config_file_list, config_dict).get(key)


def user_settings(
    config_file_list: Sequence[str] | None, config_dict: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All that the user has set in files, dict and command line."""
    return _read_settings(config_file_list, config_dict).external_config_dict


def datasets_to_pretrain_on(
    dataset: str | None,
    config_file_list: Sequence[str] | None,
    config_dict: Mapping[str, Any] | None = None,
    datasets: str | None = None,
) -> list[str] | None:
    """Names of the data sets where the settings ask for pre-training (`train_stage: pretrain`), else None.

    Args:
        dataset, datasets: what the command line's own reading found of them.
    Raises:
        UserError: the stage without a data set, or data sets without the stage.
    """
    settings = _read_settings(config_file_list, config_dict).external_config_dict
    names = datasets or settings.get("datasets")
    if settings.get("train_stage") != "pretrain":
        if names:
            raise UserError("--datasets is for pre-training: add --train_stage=pretrain, or name one --dataset.")
        return None
    names = keys.as_list(names) if names else [dataset or settings.get("dataset")]
    if not names or not all(names):
        raise UserError("Name the data sets to pre-train on: --datasets=first,second.")
    return names


def _read_settings(config_file_list: Sequence[str] | None, config_dict: Mapping[str, Any] | None) -> Config:
    """A Config that has read the user's settings and nothing else."""
    host = Config.__new__(Config)
    host.compatibility_settings()
    host._init_parameters_category()
    host.yaml_loader = host._build_yaml_loader()
    for file in config_file_list or []:
        check_config_file(file, host.yaml_loader)
    try:
        host.file_config_dict = host._load_config_files(config_file_list)
        host.variable_config_dict = host._load_variable_config_dict(copy.deepcopy(dict(config_dict or {})))
        host.cmd_config_dict = host._load_cmd_line()
    except SyntaxError as error:  # an option that is there twice
        raise UserError(f"RecBole cannot read the settings: {error}.") from error
    host._merge_external_config_dict()
    return host


def find_model(name: str | type) -> Any:
    """The model class of this name, from RecBole or from this package; of `package.module:Class`; or the class itself.

    Raises:
        UserError: there is none, or it differs in case.
    """
    if isinstance(name, type):
        return register_model(name)
    if ":" in name:
        return register_model(_imported(name))
    try:
        return get_model(name)
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"RecBole has no model {name!r}: names are spelt as in its list of models, such as SASRec, LightGCN."
        ) from error
    except ImportError as error:
        raise UserError(f"Model {name!r} needs a package that is not installed: {error}.") from error


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two of a malformed path
        raise UserError(
            f"There is no model {path!r} ({error}): write package.module:Class, with the package on PYTHONPATH."
        ) from error


def _start_repairs(view: HostView) -> dict[str, Any]:
    """Settings without which RecBole would not start; it asks its users to find them.

    A sequential model with full-softmax loss refuses RecBole's own default of negative sampling, and needs the time
    column, which RecBole's default for a data set of one's own does not load.
    """
    below = _processed(view)
    if view.model_type != ModelType.SEQUENTIAL:
        return below
    if "train_neg_sample_args" not in view.user and view["loss_type"] == "CE":
        below["train_neg_sample_args"] = None
    return _load_time(view) | below


def _processed(view: HostView) -> dict[str, Any]:
    """How RecBole reads a data set in UniSRec's layout, where the user has not said it."""
    folder = Path(view["data_path"] or "dataset") / view.dataset
    if "benchmark_filename" in view.user or not processed.is_processed(folder, view.dataset):
        return {}
    return processed.recbole_settings(view.model_type == ModelType.SEQUENTIAL)


def _load_time(view: HostView) -> dict[str, Any]:
    columns = (view["load_col"] or {}).get("inter")
    time = view["TIME_FIELD"]
    if "load_col" in view.user or columns is None or time in columns or not _has_time(view):
        return {}
    return {"load_col": {**view["load_col"], "inter": [*columns, time]}}


def _has_time(view: HostView) -> bool:
    """Whether interactions have their time; pre-split files, whose order is given, may do without."""
    if not view["benchmark_filename"]:
        return True
    folder, part = Path(view["data_path"] or "dataset") / view.dataset, view["benchmark_filename"][0]
    try:
        file = folder / f"{view.dataset}.{part}.inter"
        return view["TIME_FIELD"] in atomic_files.columns(file, view["field_separator"], view["encoding"])
    except (OSError, UnicodeError):  # the checks say so later
        return True


def _ranking(view: HostView) -> dict[str, Any]:
    """Leave-one-out in time order, all items ranked, for every kind of model.

    Feature-interaction models are labelled and judged by AUC in RecBole's defaults; here every interaction is a
    positive, negatives are sampled, and columns of the interaction itself (rating, time) are no features, since a
    user's future has none. Those that the user filters by are read for it.
    """
    below: dict[str, Any] = {"eval_args": copy.deepcopy(RANKING_ARGS), **_load_time(view)}
    if any(metric.upper() in {"AUC", "LOGLOSS", "MAE", "RMSE"} for metric in view.stock["metrics"]):
        below |= copy.deepcopy(RANKING_METRICS)
    if view.model_type == ModelType.CONTEXT:
        below["train_neg_sample_args"] = {"distribution": "uniform", "sample_num": 1}
        below["threshold"] = None
        loaded = copy.deepcopy(below.get("load_col") or view["load_col"])
        if loaded and loaded.get("inter") and "load_col" not in view.user:
            asked = {
                *(view["val_interval"] or {}),
                *(view.user.get("threshold") or {}),
                *(view["normalize_field"] or []),
            }
            kept = {view["USER_ID_FIELD"], view["ITEM_ID_FIELD"], view["TIME_FIELD"], *asked}
            below["load_col"] = {**loaded, "inter": [field for field in loaded["inter"] if field in kept]}
        read = (below.get("load_col") or loaded or {}).get("inter") or []
        extra = [
            field
            for field in ([] if read == "*" else read)  # "*": all columns, as without load_col
            if field not in {view["USER_ID_FIELD"], view["ITEM_ID_FIELD"]}
        ]
        below["unused_col"] = {"inter": extra}
    return below
