"""What all trials of a sweep share: student, data set, fixed settings, sweep file. Kept as `sweep.json`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_prmkd.data import atomic_files
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host import keys
from recbole_prmkd.recbole_host.config import host_view, load_config, with_absolute_paths
from recbole_prmkd.recbole_host.run_files import no_command_line
from recbole_prmkd.teacher_cache import store
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.tune.searchable import check_space
from recbole_prmkd.tune.settings import SweepSettings, checked

SCHEMA = "recbole_prmkd/sweep/1"
FILE = "sweep.json"


@dataclass(frozen=True)
class Plan:
    """A sweep before it runs.

    settings: fixed for all trials, every path in it absolute. data: hash of the data set's files, once it is known.
    """

    model: str
    dataset: str
    settings: dict[str, Any]
    sweep: SweepSettings
    data: str | None = None

    def with_data(self) -> "Plan":
        """The plan with the hash of its data set's files."""
        return replace(self, data=atomic_files.digest(Path(self.config(self.first)["data_path"]), self.dataset))

    def config(self, searched: Mapping[str, Any] | None = None) -> Config:
        """The configuration of a trial with these settings, or of the sweep's fixed ones alone."""
        with no_command_line():
            return load_config(self.model, self.dataset, None, {**self.settings, **(searched or {})})

    @property
    def first(self) -> dict[str, Any]:
        """A first value for each key of the search space."""
        return {domain.key: domain.witnesses[0] for domain in self.sweep.domains}

    def values(self, key: str) -> list[Any]:
        """All values that trials may give this key: the search space's, or the fixed one."""
        searched = [domain.witnesses for domain in self.sweep.domains if domain.key == key]
        return searched[0] if searched else [self.config(self.first)[key]]

    def drawn(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's settings from what Ray draws."""
        return {domain.key: domain.drawn(values[domain.key]) for domain in self.sweep.domains}

    def as_json(self) -> dict[str, Any]:
        """What `sweep.json` holds."""
        content = {"schema": SCHEMA, "model": self.model, "dataset": self.dataset, "settings": self.settings}
        return store.as_json({**content, "sweep": self.sweep.model_dump(mode="json"), "data": self.data})


def make_plan(
    model: str | None,
    dataset: str | None,
    config_file_list: Sequence[str] | None,
    config_dict: Mapping[str, Any] | None,
    sweep: SweepSettings,
) -> Plan:
    """The plan of what the user has set; reads the command line, as a plain run does.

    Raises:
        UserError: a wrong setting or search space.
    """
    view = host_view(model, dataset, config_file_list, config_dict)
    check_space(sweep.domains, view)
    base = load_config(model, dataset, config_file_list, config_dict)
    if base["eval_step"] <= 0:
        raise UserError("A sweep compares trials by validation: set eval_step to 1 or more.")
    settings = {key: value for key, value in view.user.items() if key not in {"model", "dataset"}}
    settings.pop("kd_output_dir", None)
    settings |= {"seed": base["seed"]} if "seed" not in {domain.key for domain in sweep.domains} else {}
    settings["kd_teacher_seed"] = base["kd_teacher_seed"]  # so that trials of other seeds share the teachers
    if view.dataset != "ml-100k" or "data_path" in view.user:  # RecBole ships ml-100k
        settings["data_path"] = str(Path(base["data_path"]).resolve().parent)
    if _some_distil(sweep) and base["kd_protocol"] == "auto":
        settings["kd_protocol"] = "ranking"  # auto would rank the students alone on another split
    settings = with_absolute_paths(settings, base)
    if base["pre_model_path"]:  # of a student that learns in stages
        settings["pre_model_path"] = str(Path(base["pre_model_path"]).resolve())
    if not sweep.resources.gpu:
        settings["use_gpu"] = False  # a trial that asked for no GPU must not take one
        settings["gpu_id"] = ""
    plan = Plan(view.model, view.dataset, store.as_json(settings), sweep)
    plan.config(plan.first)
    return plan


def _some_distil(sweep: SweepSettings) -> bool:
    """Whether `kd` is searched, with `none` and others among its values."""
    kds = [keys.checked({"kd": v}, TEACHERS)["kd"] for d in sweep.domains if d.key == "kd" for v in d.witnesses]
    return "none" in kds and set(kds) != {"none"}


def write_plan(plan: Plan, folder: Path) -> None:
    """Keep the plan in the sweep's folder, which is made, or empty.

    Raises:
        UserError: it holds something.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        way = f"go on with --tune_resume={folder}, or name" if (folder / FILE).is_file() else "name"
        raise UserError(f"{folder} is there already: {way} another --kd_output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    store.write_json(folder / FILE, plan.as_json())


def read_plan(folder: Path) -> Plan:
    """The plan of the sweep in this folder.

    Raises:
        UserError: there is none, or it is of another schema.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"There is no sweep in {folder} ({FILE} is missing): check --tune_resume.") from error
    if content.get("schema") != SCHEMA:
        raise UserError(f"{folder / FILE} is of schema {content.get('schema')}, this version reads {SCHEMA}.")
    sweep = checked(content["sweep"], str(folder / FILE))
    return Plan(content["model"], content["dataset"], content["settings"], sweep, content.get("data"))


def check_data(stored: Plan, folder: Path) -> None:
    """Refuse to go on with other data than the trials had that have ended.

    Raises:
        UserError: the files have changed since; a sweep of an earlier version does not know.
    """
    if stored.data is not None and stored.with_data().data != stored.data:
        raise UserError(
            f"The files of {stored.dataset} have changed since the sweep in {folder} began: bring them back, or start "
            "another one."
        )


def differing(plan: Plan, stored: Plan) -> list[str]:
    """Names of what differs between two plans, for a resume that must not change anything."""
    left, right = plan.as_json(), stored.as_json()
    names = [key for key in ("model", "dataset") if left[key] != right[key]]
    for part in ("settings", "sweep"):
        every = sorted({*left[part], *right[part]})
        names += [key for key in every if left[part].get(key) != right[part].get(key)]
    return names
