"""One table from the results of several runs: each teacher, and the student of each run.

python -m recbole_prmkd.report runs/demo/none runs/demo/prmkd
"""

import sys
from pathlib import Path

import pandas as pd

from recbole_prmkd.errors import UserError
from recbole_prmkd.results.groups import WORDS
from recbole_prmkd.results.run_folder import read_result
from recbole_prmkd.results.schema import GroupResult, StudentResult, TeacherResult


def table(folders: list[Path], cutoff: int = 10) -> pd.DataFrame:
    """Test metrics as RecBole ranks and on unseen items, seconds and parameters; one line per model and run.

    Raises:
        UserError: a folder without a result, or a result without these metrics.
    """
    lines = {name: _line(folder, entry, cutoff) for name, (folder, entry) in _models(folders).items()}
    return pd.DataFrame.from_dict(lines, orient="index")


def groups_table(folders: list[Path], cutoff: int = 10) -> pd.DataFrame:
    """Cold items and users with short histories: a line per group, model and run; empty where no result has a group."""
    lines = []
    for group, words in WORDS.items():
        for name, (_, entry) in _models(folders).items():
            if group in entry.groups:
                measured = entry.groups[group]
                examples = f"{measured.examples:,}"
                lines.append({"group": words, "examples": examples, "model": name, **_metrics(measured, cutoff)})
    return pd.DataFrame(lines)


def _models(folders: list[Path]) -> dict[str, tuple[Path, StudentResult | TeacherResult]]:
    """Each teacher and each run's student by its name, with the folder of its run."""
    models: dict[str, tuple[Path, StudentResult | TeacherResult]] = {}
    for folder in folders:
        run = read_result(folder)
        kd = run.config["kd"]
        name = f"{run.student.model}, alone" if kd == "none" else f"{run.student.model}, {kd}"
        if run.guard is not None:
            name += f", guard: {run.guard.kept}"
        models |= {f"teacher {teacher}": (folder, entry) for teacher, entry in run.teachers.items()}
        models[f"student {name} ({folder})"] = (folder, run.student)
    return models


def _metrics(entry: StudentResult | TeacherResult | GroupResult, cutoff: int) -> dict[str, str]:
    """NDCG and Recall in both rankings, with a dash for what is not there."""
    line = {}
    for label, metrics in (("", entry.test), (" unseen", entry.test_unseen)):
        for metric in ("NDCG", "Recall"):
            value = metrics.get(f"{metric.lower()}@{cutoff}")
            line[f"{metric}@{cutoff}{label}"] = "-" if value is None else f"{value:.4f}"
    return line


def _line(folder: Path, entry: StudentResult | TeacherResult, cutoff: int) -> dict[str, str]:
    for key in (f"ndcg@{cutoff}", f"recall@{cutoff}"):
        if key not in entry.test or key not in entry.test_unseen:
            raise UserError(f"{folder} has no {key}: run it with metrics NDCG and Recall and topk {cutoff}.")
    seconds = entry.seconds if isinstance(entry, TeacherResult) else entry.train_seconds
    return {**_metrics(entry, cutoff), "train s": f"{seconds:.0f}", "parameters": f"{entry.parameters:,}"}


def main() -> None:
    """Print the table of the folders on the command line."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    try:
        if not folders:
            raise UserError("Name the folders of some runs: python -m recbole_prmkd.report runs/demo/none runs/...")
        print(table(folders).to_string())
        groups = groups_table(folders)
        if len(groups):
            print(f"\n{groups.to_string(index=False)}\n")
    except UserError as error:
        sys.exit(f"recbole_prmkd: {error}")
    print("Test split, all items ranked; 'unseen': the user's earlier items left out of the ranking.")
    print("Results lie in: " + ", ".join(str(folder) for folder in folders))


if __name__ == "__main__":
    main()
