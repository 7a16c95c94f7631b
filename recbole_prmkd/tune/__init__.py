"""Sweeps: many students from one set of teachers, on Ray Tune, from a laptop to a cluster.

- `sweep`: the whole sweep as visible steps; start here
- `space`, `settings`: the sweep file: search space; search, scheduler, trials and resources
- `searchable`: which keys trials can change; `cross_checks`: whether the values fit together
- `plan`: what all trials share, kept as `sweep.json` in the sweep's folder
- `trial_inputs`: data and teacher caches, made once and given to the trials
- `trial`: one trial: the code of a plain run, without the test
- `search`: the space, the search and the scheduler as Ray Tune's own objects
- `outcome`: trials.csv, best.yaml, importance and parallel coordinates
- `cluster`: where Ray runs; `encode`: the teachers' encoding jobs on that cluster
"""

from recbole_prmkd.tune.encode import encode_on
from recbole_prmkd.tune.sweep import run_sweep

__all__ = ["encode_on", "run_sweep"]
