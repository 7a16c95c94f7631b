"""What is compared: data sets x students x KD methods x seeds, one cell each, checked before anything starts.

A cell is a plain run in `<folder>/<dataset>/<model>/<kd>/<seed>/`. Its settings are the user's, and these for every
cell alike, the baseline among them, unless the user sets them:

- `kd_protocol: ranking`: one split, one ranking and one stopping rule for all; no other is taken
- `kd_teacher_seed`: the first seed, so that all cells learn from the same teachers
- `kd_shared_prefixes: true`: the baseline trains on the same batches as what it is compared with
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from recbole.config import Config

from recbole_prmkd.data import atomic_files
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.checks import check_run
from recbole_prmkd.recbole_host.config import host_view, load_config, with_absolute_paths
from recbole_prmkd.recbole_host.ignored import warn_of_ignored
from recbole_prmkd.recbole_host.keys import as_list, has_teachers, key_table, nearest
from recbole_prmkd.recbole_host.run_files import no_command_line
from recbole_prmkd.storage import store
from recbole_prmkd.storage.json_files import read_object, write_sealed
from recbole_prmkd.storage.locks import is_unused
from recbole_prmkd.teachers.ensemble import ENSEMBLE

SCHEMA = "recbole_prmkd/compare/1"
FILE = "comparison.json"
FIRST_SEED, SEEDS, MOST_SEEDS = 2020, 5, 100  # RecBole's own default seed is 2020
GREATEST_SEED = 2**32 - 1  # numpy's
BASELINE = "none"
# What the lists of the comparison or its own jobs decide.
_DECIDED = {"model", "dataset", "datasets", "kd", "seed", "kd_output_dir", "kd_save_ranks", "gpu_id", "show_progress"}
_PROTOCOL = {"kd_protocol": "ranking"}
_LISTS = ("datasets", "models", "kds", "seeds")
_EXAMPLES = {"--compare": "none,mean,prmkd_plus", "--models": "SASRec,LightGCN", "--datasets": "ml-100k"}


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    dataset: str
    model: str
    kd: str
    seed: int

    def folder(self, comparison: Path) -> Path:
        """Where it writes."""
        return comparison / self.dataset / self.model / self.kd / str(self.seed)

    def __str__(self) -> str:
        return f"{self.model} on {self.dataset}, {self.kd}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """A comparison before it runs.

    settings: the user's, for all cells, every path in it absolute. tune: the sweep file of `--tune`, if any.
    tuned: what the sweeps found, by data set, student and KD method. data: hash of each data set's files.
    """

    datasets: tuple[str, ...]
    models: tuple[str, ...]
    kds: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    tune: Mapping[str, Any] | None = None
    tuned: Mapping[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """All cells; the baseline of a student first, a seed of all KD methods before the next seed."""
        parts = product(self.datasets, self.models, self.seeds, self.kds)
        return [Cell(dataset, model, kd, seed) for dataset, model, seed, kd in parts]

    def settings_of(self, cell: Cell, tuned: bool = True) -> dict[str, Any]:
        """Everything that a cell's run is given beside model and data set, but for its folder."""
        shared = {**_PROTOCOL, "kd_teacher_seed": self.seeds[0], "kd_shared_prefixes": True}
        own = {"kd": cell.kd, "seed": cell.seed, "kd_save_ranks": True, "kd_rebuild": False, "show_progress": False}
        found = self.tuned.get((cell.dataset, cell.model, cell.kd), {}) if tuned else {}
        settings = {**shared, **self.settings, **found, **own}
        if cell.kd == ENSEMBLE:  # no student to start
            settings.pop("kd_item_init", None)
        if cell.kd == ENSEMBLE or not has_teachers(settings):
            settings.pop("kd_guard", None)
        return settings

    def config(self, cell: Cell) -> Config:
        """The cell's configuration."""
        with no_command_line():
            return load_config(cell.model, cell.dataset, None, self.settings_of(cell))

    def with_data(self) -> "Grid":
        """The grid with the hashes of its data sets' files, interactions and side information."""
        paths = {name: self.config(Cell(name, self.models[0], BASELINE, 0))["data_path"] for name in self.datasets}
        return replace(self, data={name: atomic_files.digest(Path(path), name) for name, path in paths.items()})

    def alike(self) -> dict[str, Any]:
        """What all cells of a folder share: the settings, the teachers' seed included, and the search."""
        return {"kd_teacher_seed": self.seeds[0], "--tune": self.tune, **store.as_json(dict(self.settings))}

    def as_json(self) -> dict[str, Any]:
        """What `comparison.json` holds."""
        names = (*_LISTS, "settings", "tune", "data")
        return store.as_json({"schema": SCHEMA, **{name: getattr(self, name) for name in names}})


def make_grid(
    kds: str,
    models: str | None,
    datasets: str | None,
    seeds: str | None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
) -> Grid:
    """The grid that the command line asks for; the other settings are read as a plain run reads them.

    Args:
        kds, models, datasets: names separated by commas.
        seeds: how many, from 2020 on, or the seeds themselves separated by commas.
    Raises:
        UserError: a list is missing, wrong or names something twice, or a setting is wrong.
    """
    names, students, data = _names("--compare", kds), _names("--models", models), _names("--datasets", datasets)
    for name in names:
        if name not in key_table()["kd"]["choices"]:
            raise UserError(f"--compare names {name!r}: {nearest(name, key_table()['kd']['choices'])}.")
    numbers = parse_seeds(seeds)
    view = host_view(students[0], data[0], config_file_list, config_dict)
    if view["train_stage"] == "pretrain":
        raise UserError("--compare trains students: leave --train_stage=pretrain out, or leave --compare out.")
    given = {key: value for key, value in view.user.items() if key not in _DECIDED}
    protocol = given.get("kd_protocol", "ranking")
    if protocol != "ranking":
        raise UserError(
            f"--compare ranks all students alike, but kd_protocol is {protocol}: leave it out, and set eval_args for "
            "another split."
        )
    data_path = {"data_path": str(Path(view["data_path"] or "dataset").resolve())}
    with no_command_line():
        base = load_config(students[0], data[0], None, {**_PROTOCOL, **given, **data_path})
    return Grid(data, students, names, numbers, store.as_json({**with_absolute_paths(given, base), **data_path}))


def check_grid(grid: Grid, folder: Path) -> None:
    """Reject a comparison of which any cell would be rejected.

    Raises:
        UserError: what the cell's own run would say.
    """
    cells = [cell for cell in grid.cells() if cell.seed == grid.seeds[0]]
    configs = [grid.config(cell) for cell in cells]
    for cell, config in zip(cells, configs, strict=True):
        check_run(config, cell.folder(folder))
    warn_of_ignored(*configs)


def in_folder(grid: Grid, folder: Path) -> Grid:
    """The grid with what the folder's lists had already, for a report on both; nothing is written.

    Raises:
        UserError: it holds something else, or a comparison with other settings or data.
    """
    if not (folder / FILE).is_file():
        if folder.is_dir() and not is_unused(folder):
            raise UserError(f"{folder} holds files but no comparison: name a new folder with --kd_output_dir.")
        return grid
    stored = read_grid(folder)
    left, right, absent = grid.alike(), stored.alike(), object()
    changed = [key for key in sorted({*left, *right}) if left.get(key, absent) != right.get(key, absent)]
    if changed:
        raise UserError(
            f"The comparison in {folder} had other settings ({', '.join(changed)}): go on with those, or name "
            "another --kd_output_dir."
        )
    for name, digest in grid.data.items():
        if stored.data.get(name, digest) != digest:
            raise UserError(
                f"The files of {name} have changed since the comparison in {folder} began: bring them back, or name "
                "another --kd_output_dir."
            )
    both: dict[str, Any] = {n: tuple(dict.fromkeys([*getattr(stored, n), *getattr(grid, n)])) for n in _LISTS}
    return replace(grid, **both, data={**stored.data, **grid.data})


def open_folder(grid: Grid, folder: Path) -> Grid:
    """Make the comparison's folder or go on in it, as `in_folder` does; `comparison.json` holds the grid it returns."""
    grid = in_folder(grid, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / FILE, grid.as_json())
    return grid


def default_folder(grid: Grid) -> Path:
    """Where a comparison lies that names no folder: by students, data sets and settings, so that it is found again."""
    few = [
        "+".join([*names[:3], *([f"{len(names) - 3}"] if names[3:] else [])]) for names in (grid.models, grid.datasets)
    ]
    own = store.digest([grid.models, grid.datasets, grid.alike()])[:8]
    return (Path("runs") / "-".join(["compare", *few, own])).resolve()


def read_grid(folder: Path) -> Grid:
    """The comparison in this folder.

    Raises:
        UserError: there is none, or it is of another schema.
    """
    try:
        content = read_object(folder / FILE)
    except (OSError, ValueError) as error:
        raise UserError(
            f"There is no comparison in {folder} ({FILE} is missing or damaged): check the name."
        ) from error
    if content.get("schema") != SCHEMA:
        raise UserError(f"{folder / FILE} is of schema {content.get('schema')}, this version reads {SCHEMA}.")
    try:
        lists: dict[str, Any] = {name: tuple(content[name]) for name in _LISTS}
        return Grid(**lists, settings=content["settings"], tune=content.get("tune"), data=content.get("data", {}))
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / FILE} is damaged ({error}): name another --kd_output_dir.") from error


def parse_seeds(text: str | None) -> tuple[int, ...]:
    """The seeds that `--seeds` names: a number of them, from 2020 on, or a list; `2025,` is a list of one.

    Raises:
        UserError: it is neither.
    """
    if text is None:
        return tuple(range(FIRST_SEED, FIRST_SEED + SEEDS))
    parts = [part.strip() for part in text.strip("[] ").removesuffix(",").split(",")]
    if not all(part.isdecimal() and int(part) <= GREATEST_SEED for part in parts):
        raise UserError(
            f"--seeds={text} is not legal: give a number of seeds, or a list of seeds up to {GREATEST_SEED}."
        )
    if "," in text:
        return tuple(map(int, _once("--seeds", parts)))
    if not 1 <= int(parts[0]) <= MOST_SEEDS:
        raise UserError(
            f"--seeds={text} would be {text} seeds: give 1 to {MOST_SEEDS}, or write --seeds={text}, (with the comma) "
            "for that one seed."
        )
    return tuple(range(FIRST_SEED, FIRST_SEED + int(parts[0])))


def _names(option: str, text: str | None) -> tuple[str, ...]:
    names = as_list(text) if text else None
    if not names:
        raise UserError(f"{option} needs names separated by commas, such as {option}={_EXAMPLES[option]}.")
    return _once(option, names)


def _once(option: str, names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{option} names {name} twice: name each once.")
    return tuple(names)
