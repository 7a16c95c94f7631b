"""Pre-trained recommendation models as teachers. Read in this order:

- `base`: the contract, a RecBole sequential model whose score is a cosine;
- `unisrec`: item semantics, a frozen text vector per item;
- `fit`: fine-tune a teacher on the training split, or load the one that is stored;
- `evaluate`: a fitted teacher's own metrics.

To add one: subclass `base.Teacher`, add an entry to `TEACHERS`, write `properties/model/<Name>.yaml`.
"""

from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.unisrec import UniSRec

TEACHERS: dict[str, type[Teacher]] = {
    "UniSRec": UniSRec,
}

__all__ = ["TEACHERS", "Teacher", "UniSRec"]
