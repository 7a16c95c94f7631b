"""What all trials of a sweep share: student, data set, fixed settings, sweep file. Kept as `sweep.json`."""

import itertools
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from recbole.config import Config

from recbole_prmkd.data import atomic_files
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.config import host_view, load_config, with_absolute_paths
from recbole_prmkd.recbole_host.run_files import no_command_line
from recbole_prmkd.storage import store
from recbole_prmkd.storage.json_files import read_json, read_object, write_sealed
from recbole_prmkd.storage.locks import is_unused
from recbole_prmkd.tune.searchable import check_space
from recbole_prmkd.tune.settings import SweepSettings
from recbole_prmkd.tune.space import Domain

# To be raised whenever what Ray pickles into the sweep's folder is renamed, moved or changed.
SCHEMA = "recbole_prmkd/sweep/2"
FILE = "sweep.json"


class Plan(BaseModel):
    """A sweep before it runs.

    settings: fixed for all trials, every path in it absolute. data: hash of the data set's files.
    earlier: how many trials the sweep had each time that it was given further ones.
    """

    model_config = ConfigDict(frozen=True)

    model: str  # a name of RecBole's or ours, or package.module:Class
    dataset: str
    settings: dict[str, Any]
    sweep: SweepSettings
    data: str
    earlier: tuple[int, ...] = ()

    @property
    def batches(self) -> list[int]:
        """Numbers of trials that Ray runs one after the other."""
        bounds = [0, *self.earlier, self.sweep.planned]
        return [after - before for before, after in itertools.pairwise(bounds)]

    def config(self, searched: Mapping[str, Any] | None = None) -> Config:
        """The configuration of a trial with these settings beside the fixed ones; none: the space's first values."""
        with no_command_line():
            return load_config(self.model, self.dataset, None, self.settings | dict(searched or self.first))

    @property
    def domains(self) -> list[Domain]:
        """The search space."""
        return self.sweep.domains

    @property
    def first(self) -> dict[str, Any]:
        """A first value for each key of the search space."""
        return {domain.key: domain.representatives[0] for domain in self.domains}

    def values(self, key: str) -> list[Any]:
        """All values that trials may give this key: the search space's, or the fixed one."""
        searched = [domain.representatives for domain in self.domains if domain.key == key]
        return searched[0] if searched else [self.config()[key]]

    def configs(self, *keys: str) -> list[Config]:
        """The configuration of each combination that trials may make of these keys' values."""
        searched = [domain for domain in self.domains if domain.key in keys]
        combinations = itertools.product(*(domain.representatives for domain in searched))
        names = [domain.key for domain in searched]
        return [self.config(self.first | dict(zip(names, values, strict=True))) for values in combinations]

    def searched(self, sampled: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's settings from the values that Ray gives it."""
        return {domain.key: domain.setting(sampled[domain.key]) for domain in self.domains}

    def data_digest(self) -> str:
        """Hash of the data set's files as they are now."""
        return atomic_files.digest(Path(self.config()["data_path"]), self.dataset)


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
    settings = {key: value for key, value in view.user.items() if key not in {"model", "dataset", "kd_output_dir"}}
    settings["kd_teacher_seed"] = base["kd_teacher_seed"]  # so that trials of other seeds share the teachers
    searched = {domain.key: domain.values for domain in sweep.domains}
    if "seed" not in searched:
        settings["seed"] = base["seed"]
    if view.dataset != "ml-100k" or "data_path" in view.user:  # RecBole ships ml-100k
        settings["data_path"] = str(Path(base["data_path"]).resolve().parent)
    kds = {str(kd).lower() for kd in searched.get("kd", ())}
    if "none" in kds and len(kds) > 1 and base["kd_protocol"] == "auto":
        settings["kd_protocol"] = "ranking"  # auto would rank the students alone on another split
    settings = with_absolute_paths(settings, base)
    if base["pre_model_path"] and isinstance(base["pre_model_path"], str):  # of a student that learns in stages
        settings["pre_model_path"] = str(Path(base["pre_model_path"]).resolve())
    if not sweep.resources.gpu:
        settings |= {"use_gpu": False, "gpu_id": ""}  # a trial that asked for no GPU must not take one
    named = str(model or view.user["model"])  # of a user's class the path: a trial's process finds it by nothing else
    plan = Plan(model=named, dataset=view.dataset, settings=store.as_json(settings), sweep=sweep, data="")
    return plan.model_copy(update={"data": plan.data_digest()})


def resume_option(folder: Path) -> str:
    """The option that goes on with the sweep in this folder, as a shell reads it."""
    return f"--tune_resume={shlex.quote(str(folder))}"


def check_free(folder: Path) -> None:
    """Reject a folder that holds something, for a new sweep."""
    if folder.exists() and not (folder.is_dir() and is_unused(folder)):
        resume = f"go on with {resume_option(folder)}, or name" if (folder / FILE).is_file() else "name"
        raise UserError(f"{folder} is there already: {resume} another --kd_output_dir.")


def write_plan(plan: Plan, folder: Path) -> None:
    """Keep the plan in the sweep's folder, which is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / FILE, {"schema": SCHEMA, **plan.model_dump(mode="json")})


def read_plan(folder: Path) -> Plan:
    """The plan of the sweep in this folder; read before anything that Ray has pickled there.

    Raises:
        UserError: there is none, or it is of another version of this package.
    """
    file = folder / FILE
    if not file.is_file():
        raise UserError(f"There is no sweep in {folder} ({FILE} is missing): check --tune_resume.")
    try:
        content = read_json(file)
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema == SCHEMA:
            return Plan.model_validate(read_object(file))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: start a new sweep.") from error
    raise UserError(
        f"The sweep in {folder} was begun by an earlier version of recbole_prmkd ({schema}, not {SCHEMA}), whose "
        "trials this one cannot go on with: start a new sweep."
    )


def with_trials(plan: Plan, trials: int) -> Plan:
    """The plan of a sweep that takes further trials, up to this number.

    Raises:
        UserError: it has as many already, or cannot have more.
    """
    if plan.sweep.search == "grid":
        raise UserError(
            "search: grid tries every combination, so there are no further trials: leave --tune_trials out."
        )
    if trials < plan.sweep.samples:
        raise UserError(
            f"The sweep has {plan.sweep.samples} trials already: give a larger number than --tune_trials={trials}."
        )
    more = plan.model_copy(update={"sweep": plan.sweep.model_copy(update={"trials": trials})})
    if trials > plan.sweep.samples and more.sweep.planned == plan.sweep.planned:
        raise UserError(
            f"All {plan.sweep.planned} settings of the space are tried already, so there are no further trials: leave "
            "--tune_trials out, or start a sweep with a larger space."
        )
    if more.sweep.planned > plan.sweep.planned:
        more = more.model_copy(update={"earlier": (*plan.earlier, plan.sweep.planned)})
    return more


def check_owner(folder: Path, trusted: bool) -> None:
    """Reject another user's sweep unless it is trusted: going on runs what is pickled there.

    Raises:
        UserError: the folder, or a file in it that Ray reads, is another user's.
    """
    if trusted or not hasattr(os, "getuid"):
        return
    for path in (folder, *(inner for top in folder.glob("ray*") for inner in (top, *top.rglob("*")))):
        with suppress(FileNotFoundError):  # a link to nowhere
            if path.stat().st_uid != os.getuid():
                raise UserError(
                    f"{path} belongs to another user, and going on with a sweep runs code that its folder may hold: "
                    "if you trust its owner, add --tune_trust_folder."
                )


def differing(plan: Plan, stored: Plan) -> list[str]:
    """Names of what differs between two plans, for a resume that must not change anything."""
    one, other = (
        {"model": each.model, "dataset": each.dataset, **each.settings, "sweep": each.sweep} for each in (plan, stored)
    )
    names = [key for key in sorted({*one, *other} - {"sweep"}) if one.get(key) != other.get(key)]
    return names + [key for key in SweepSettings.model_fields if getattr(plan.sweep, key) != getattr(stored.sweep, key)]
