"""Everything that knows RecBole's insides. The other rooms meet RecBole through its public classes only.

- `compat`: repairs that RecBole 1.2.0 needs on today's packages; `registry`, `models`: our models and trainer, and a
  user's own, in its look-ups
- `config`, `keys`, `checks`: RecBole's Config with the `kd_` keys, and what is refused before work starts
- `run_files`: where RecBole writes its log, curves and checkpoint
- `own_checkpoint`: a student's `.pth` file, read without running what others have put into it
- `progress`: the state of a training between two epochs; `processes`: several processes of one training
- `memory`: what the process keeps of freed memory, and the most it has held
"""
