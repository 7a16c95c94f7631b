"""Distil pre-trained recommendation models into any RecBole model (PRM-KD, CKD-MDSR; arXiv 2401.00797).

The package reads as the data flows:

- `quick_start`: the whole run as visible steps; start here. Its parts: `preparation` (data, teachers, knowledge),
  `training` (the student, and `progress`, from which a training goes on)
- `keys`, `config`, `checks`: the kd_ keys, RecBole's Config around them, what is refused before work starts
- `dataset`, `rows`, `processed`: RecBole's split as rows of histories; data sets in UniSRec's layout
- `text`, `encoder`, `images`, `vectors_file`: item text, images and their vectors, by a side channel
- `teachers`: pre-trained recommendation models, fine-tuned on the training split
- `store`, `encoding_jobs`, `knowledge`: folders that a later run may trust, encoding that resumes, the teachers' scores
- `candidates`, `top_items`, `weighting`, `curriculum`, `losses`: the method's parts, pure torch
- `objective`: the method on one screen; `peers`: other papers' ways to distil, in its place
- `students`: models of our own to distil into, beside RecBole's
- `student`, `factorised`, `logits`, `positives`: the student's own scores, cheaply, on one scale; a batch's rows
- `student_defaults`: how much of a kd_loss, by the kind of student
- `prefixes`, `lengths`, `padding`: one pass for all prefixes, with little padding
- `warm_start`, `dropout`: where a student's items start, its dropout while it is distilled
- `trainer`: RecBole's trainers with distillation; `distributed`, `launch`: several processes
- `evaluation`, `ranks`, `result`, `plots`, `report`: metrics, each row's rank, result.json, a figure, tables
- `compare`: a grid of runs and the report on them
- `tune`: sweeps on Ray: many trainings from one preparation
- `compat`, `registry`, `host`: repairs of RecBole, its look-ups, where it writes
"""

from recbole_prmkd.recbole_host import compat  # isort: skip  # first: RecBole does not start without it
from recbole_prmkd.recbole_host import registry  # isort: skip
from recbole_prmkd.distil.trainer import PRMKDTrainer
from recbole_prmkd.errors import UserError
from recbole_prmkd.quick_start import run_recbole_prmkd
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.pretrain import pretrain

__all__ = ["TEACHERS", "PRMKDTrainer", "UserError", "compat", "pretrain", "registry", "run_recbole_prmkd"]
