"""Comparisons: ways to distil x students x data sets x seeds in one command, and the report on them.

- `run`: the whole comparison as visible steps; start here
- `grid`: what is compared, its cells, their settings; refusals; kept as `comparison.json`
- `schedule`: which jobs run when, here or on Ray, behind one progress bar; `job`: one of them; `work`: its process
- `tuning`: the same search for each way before the cells, with `--tune`
- `cost`: what serving a student or a teacher takes, measured in turns
- `gather`: the results on disk as one data frame a row per cell, and each test row's rank
- `statistics`: mean, deviation, paired tests with Holm's correction; `groups`: gain by history length and popularity
- `tables`: results.csv, table.md, table.tex; `figures`: SVG; `page` and `page.html`: report.html
"""

from recbole_prmkd.compare.run import run_comparison

__all__ = ["run_comparison"]
