"""The command `python -m recbole_prmkd.report RUN_FOLDER ...`; the table is made in `results.report`."""

from recbole_prmkd.results.report import main

if __name__ == "__main__":
    main()
