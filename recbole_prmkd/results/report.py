"""One table from the results of several runs: each teacher, and the student of each run.

python -m recbole_prmkd.report runs/demo/none runs/demo/prmkd
"""

import sys
from pathlib import Path

import pandas as pd

from recbole_prmkd.errors import UserError
from recbole_prmkd.results.run_folder import read_result
from recbole_prmkd.results.schema import StudentResult, TeacherResult


def table(folders: list[Path], cutoff: int = 10) -> pd.DataFrame:
    """Test metrics as RecBole ranks and on unseen items, seconds and parameters; one line per model and run.

    Raises:
        UserError: a folder without a result, or a result without these metrics.
    """
    lines: dict[str, dict[str, str]] = {}
    for folder in folders:
        run = read_result(folder)
        kd = run.config["kd"]
        name = f"{run.student.model}, alone" if kd == "none" else f"{run.student.model}, {kd}"
        if run.guard is not None:
            name += f", guard: {run.guard.kept}"
        for teacher, entry in run.teachers.items():
            lines[f"teacher {teacher}"] = _line(folder, entry, entry.seconds, cutoff)
        lines[f"student {name} ({folder})"] = _line(folder, run.student, run.student.train_seconds, cutoff)
    return pd.DataFrame.from_dict(lines, orient="index")


def _line(folder: Path, entry: StudentResult | TeacherResult, seconds: float, cutoff: int) -> dict[str, str]:
    line = {}
    for label, metrics in (("", entry.test), (" unseen", entry.test_unseen)):
        for metric in ("NDCG", "Recall"):
            key = f"{metric.lower()}@{cutoff}"
            if key not in metrics:
                raise UserError(f"{folder} has no {key}: run it with metrics NDCG and Recall and topk {cutoff}.")
            line[f"{metric}@{cutoff}{label}"] = f"{metrics[key]:.4f}"
    return {**line, "train s": f"{seconds:.0f}", "parameters": f"{entry.parameters:,}"}


def main() -> None:
    """Print the table of the folders on the command line."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    try:
        if not folders:
            raise UserError("Name the folders of some runs: python -m recbole_prmkd.report runs/demo/none runs/...")
        print(table(folders).to_string())
    except UserError as error:
        sys.exit(f"recbole_prmkd: {error}")
    print("Test split, all items ranked; 'unseen': the user's earlier items left out of the ranking.")
    print("Results lie in: " + ", ".join(str(folder) for folder in folders))


if __name__ == "__main__":
    main()
