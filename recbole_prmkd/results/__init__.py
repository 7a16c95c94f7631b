"""What a run leaves, and how it is measured.

- `evaluation`: the two rankings; `target_ranks`: the rank of each test example's target
- `result`: the schema of `result.json`, and the run's folder
- `plots`, `report`: a figure of the epochs, a table of several runs
"""
