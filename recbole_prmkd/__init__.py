"""Distil pre-trained recommendation models into any RecBole model (PRM-KD, CKD-MDSR; arXiv 2401.00797).

The package reads as the data flows. Each folder's own docstring is its map.

- `quick_start`: the whole run as visible steps; start here. Its parts: `preparation` (data, teachers, teacher cache)
  and `training` (the student); `guard`: other students beside the distilled one; `launch`: several processes
- `data`: RecBole's split as training examples; item text and images and their vectors
- `teachers`: pre-trained recommendation models, fine-tuned on the training split
- `teacher_cache`: what the teachers know, computed once and stored
- `distil`: the method, from a batch to kd_loss; `distil.objective` shows it on one screen
- `students`: how any RecBole model is scored, what is known of its class, where its items start
- `results`: metrics, result.json, figures, tables
- `serving`: a trained student in use: loaded without its data set, recommending, exported, continued on new data
- `compare`: a grid of runs and the report on them; `tune`: sweeps on Ray
- `recbole_host`: everything that knows RecBole's insides

One training step, in eight files:

    RecBole's loader, or students/windows ── batch ──► PRMKDTrainer.compute_loss      distil/trainer
        student.rec_loss(loss, batch)           the model's own loss, forward kept     students/adapter
        objective(batch)                        the method                             distil/objective
            candidates                          positives of the batch, masked         distil/candidates
            teacher_cache.scores(...)           [T, B, C]                              teacher_cache/scores
            soft targets, confidence, fuse      [B, C]                                 distil/weighting
            student.scores(batch, candidates)   [B, C]                                 students/adapter
            kd_loss(...)                                                               distil/losses
"""

from recbole_prmkd.recbole_host import compat  # isort: skip  # first: RecBole does not start without it
from recbole_prmkd.recbole_host import registry  # isort: skip
from recbole_prmkd.distil.trainer import PRMKDTrainer
from recbole_prmkd.errors import UserError
from recbole_prmkd.quick_start import run_recbole_prmkd
from recbole_prmkd.serving import LoadedModel, export, load, recommend
from recbole_prmkd.students.traits import Traits
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.pretrain import pretrain

__all__ = [
    "TEACHERS",
    "LoadedModel",
    "PRMKDTrainer",
    "Traits",
    "UserError",
    "compat",
    "export",
    "load",
    "pretrain",
    "recommend",
    "registry",
    "run_recbole_prmkd",
]
