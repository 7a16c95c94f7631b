"""Pre-trained recommendation models as teachers. Read in this order:

- `base`: the contract, a RecBole sequential model whose score is a cosine;
- `causal`: the sequence encoder that two of them share;
- `unisrec`: item semantics, a frozen text vector per item;
- `recformer_text`, `recformer`, `recformer_trainer`: item text as tokens, read by a Longformer;
- `unim2rec`: text and image vectors, fused;
- `checkpoints`: weights from files, without running what they pickle;
- `data`, `fit`: a teacher's view of a split; fine-tune it there, or load the one that is stored.

To add one: subclass `base.Teacher`, add an entry to `TEACHERS`, write `properties/model/<Name>.yaml`.
"""

from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.recformer import Recformer
from recbole_prmkd.teachers.unim2rec import UniM2Rec
from recbole_prmkd.teachers.unisrec import UniSRec

TEACHERS: dict[str, type[Teacher]] = {
    "UniSRec": UniSRec,
    "Recformer": Recformer,
    "UniM2Rec": UniM2Rec,
}

__all__ = ["TEACHERS", "Teacher"]
