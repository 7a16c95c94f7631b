"""`python -m recbole_prmkd.compare FOLDER` writes a comparison's report anew from the results that are there."""

import sys
from pathlib import Path

from recbole_prmkd.compare.grid import read_grid
from recbole_prmkd.compare.page import PAGE, write_report
from recbole_prmkd.errors import UserError


def main() -> None:
    """Write the report of the folder on the command line."""
    try:
        if len(sys.argv) != 2:
            raise UserError("Name the folder of a comparison: python -m recbole_prmkd.compare runs/compare-...")
        folder = Path(sys.argv[1])
        write_report(read_grid(folder), folder)
    except UserError as error:
        sys.exit(f"recbole_prmkd: {error}")
    print(f"Report: {folder / PAGE}")


if __name__ == "__main__":
    main()
