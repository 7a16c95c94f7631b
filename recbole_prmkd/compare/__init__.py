"""Comparisons: KD methods x students x data sets x seeds in one command, and the report on them.

- `run`: the whole comparison as visible steps; start here
- `grid`: what is compared, its cells and their settings, checked; kept as `comparison.json`
- `plan`: the jobs that are left; `tuning`: with `--tune`, the same search for each KD method before the cells
- `schedule`: which jobs run when, here or on Ray, behind one progress bar; `job`: one of them; `work`: its process
- `cost`: what serving a student or a teacher takes, measured in turns
- `gather`: the results on disk as one data frame, and each test example's rank
- `statistics`: mean, deviation, paired tests with Holm's correction; `user_gains`: for whom distillation helps
- `tables`: table.md, table.tex and the page's tables; `figures`: SVG; `page` and `page.html`: report.html, results.csv
"""

from recbole_prmkd.compare.run import run_comparison

__all__ = ["run_comparison"]
