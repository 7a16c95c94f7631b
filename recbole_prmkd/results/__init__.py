"""What a run leaves, and how it is measured.

- `schema`: the fields of `result.json`; `run_folder`: the folder that holds it, complete or not at all
- `run_result`: what a student's training and test gave, put together as the content of `result.json`
- `provenance`: package versions and commit, for `result.json`
- `evaluation`: the two rankings; `target_ranks`: the rank of each test example's target
- `covered`, `groups`: metrics of some of the test examples
- `names`: what users have named, in figures, tables and folders
- `plots`, `report`: a figure of the epochs; one table of several runs
"""
