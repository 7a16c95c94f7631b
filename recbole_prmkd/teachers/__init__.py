"""Pre-trained recommendation models as teachers. Read in this order:

- `base`: the contract, a RecBole sequential model whose score is a cosine;
- `causal`: the sequence encoder that two of them share;
- `content`: the texts of a history against each item's text, without training;
- `unisrec`: item semantics, a frozen text vector per item;
- `recformer_text`, `longformer`, `recformer`, `recformer_trainer`: item text as tokens, read by a Longformer;
- `mlm`: the masked language model of Recformer's pre-training;
- `unim2rec`: text and image vectors, fused;
- `closed_form`, `local_ridge`, `linear_choice`, `linear`: a linear collaborative model, fitted in seconds;
- `recbole_model`, `recbole_scores`, `recbole_data`, `recbole_checkpoint`, `products`: any model of RecBole;
- `calibration`: the temperature of a teacher's soft targets;
- `controls`: teachers that know nothing;
- `vectors`: any external model, by its vectors in two files;
- `checkpoints`: weights from files, without running what they pickle;
- `augment`, `contrastive`: second views of histories and in-batch losses, for pre-training;
- `unseen`, `holdout`, `trust`, `gate_fit`: how good the teachers are, and on which examples;
- `auto`: which ones a data set gets;
- `data`, `fit`: a teacher's view of a split; fine-tune it there, or load the one that is stored;
- `ensemble`: the teachers served together, without a student; `item_start`: which item vectors a student starts from;
- `bucketing`: sequences of similar length together;
- `sampled`, `steady`: fine-tuning over few items in place of all, and in few shapes; `clock`: how long it takes;
- `refresh`: teachers that go on from their weights in an earlier run;
- `pretrain`, `pretrain_trainer`, `pretrained`: train one on several data sets at once, its file and card.

A name is an entry of `TEACHERS` or a model of RecBole, or `<entry>_<word>` for a further teacher of that
kind, with settings of its own.

To add one: subclass `base.Teacher`, add an entry to `TEACHERS`, write `properties/model/<Name>.yaml`, and add its
outputs to `tests/test_output_versions.py`.
"""

from recbole_prmkd.recbole_host.keys import kind_of
from recbole_prmkd.teachers.base import Teacher
from recbole_prmkd.teachers.content import Content
from recbole_prmkd.teachers.controls import Noise, Uniform
from recbole_prmkd.teachers.linear import Linear
from recbole_prmkd.teachers.recbole_model import RecBoleTeacher
from recbole_prmkd.teachers.recformer import Recformer
from recbole_prmkd.teachers.unim2rec import UniM2Rec
from recbole_prmkd.teachers.unisrec import UniSRec
from recbole_prmkd.teachers.vectors import Vectors

TEACHERS: dict[str, type[Teacher]] = {
    "UniSRec": UniSRec,
    "Recformer": Recformer,
    "UniM2Rec": UniM2Rec,
    "Linear": Linear,
    "Content": Content,
    "Vectors": Vectors,
    "Uniform": Uniform,
    "Noise": Noise,
}


def teacher_class(name: str) -> type[Teacher]:
    """The class of a teacher by its name in `kd_teachers`."""
    return TEACHERS.get(kind_of(name), RecBoleTeacher)


__all__ = ["TEACHERS", "Teacher", "teacher_class"]
