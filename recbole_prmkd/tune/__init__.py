"""Sweeps: many students from one set of teachers, on Ray Tune, from a laptop to a cluster.

- `sweep`: the whole sweep as visible steps; start here
- `space`, `legal`, `settings`: the sweep file: search space, what of it is legal, search, scheduler, resources
- `plan`: what all trials share, checked, and kept in the sweep's folder
- `handover`: data and knowledge, made once and handed to the trials
- `trial`: one trial: the code of a plain run, without the test
- `search`: search algorithm and scheduler by name; `population`: what PBT may change
- `outcome`, `figures`: trials.csv, best.yaml, importance and parallel coordinates
- `cluster`: where Ray runs; `encode`: the teachers' pass as a Ray Data job
"""

from recbole_prmkd.tune.encode import encode_on
from recbole_prmkd.tune.sweep import run_sweep

__all__ = ["encode_on", "run_sweep"]
