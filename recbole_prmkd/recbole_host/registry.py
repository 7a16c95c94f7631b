"""Registers the teachers, our students and the distillation trainer in RecBole's own look-ups.

After `import recbole_prmkd`:
- `recbole.utils.get_model("UniSRec")` finds the teacher, since RecBole resolves a model by the module name
  `recbole.model.sequential_recommender.<name in lower case>`, and our modules answer to these names too; so it is
  with the students, `recbole.utils.get_model("PyGLightGCN")`, below `general_recommender`;
- `recbole.utils.get_trainer(type, "PRMKD")` and `recbole.trainer.PRMKDTrainer` find the trainer;
- a RecBole `Config` of any of these models reads that model's file in `properties/model/`.
"""

import sys

import recbole.trainer
from recbole.config import Config

from recbole_prmkd.distil.trainer import PRMKDTrainer
from recbole_prmkd.recbole_host import compat
from recbole_prmkd.recbole_host.keys import defaults, properties_dir
from recbole_prmkd.recbole_host.models import properties_name
from recbole_prmkd.students import STUDENTS
from recbole_prmkd.teachers import TEACHERS
from recbole_prmkd.teachers.recformer_trainer import RecformerTrainer


def install() -> list[str]:
    """Apply every lasting change to RecBole, and list them. Safe to call again; `import recbole_prmkd` does it.

    Other changes last for a run only and are put back: where RecBole writes (`run_files`), its devices and processes
    (`processes`), and the student while it is trained (`students.adapter`).
    """
    compat.repair()
    register()
    return [*compat.REPAIRS, "look-ups: teachers, PyGLightGCN and PRMKDTrainer", "Config: properties of these models"]


def register() -> None:
    """Make RecBole's look-ups find this package's models and trainer. Safe to call again."""
    for kind, models in (("sequential_recommender", TEACHERS), ("general_recommender", STUDENTS)):
        for name, model in models.items():
            sys.modules[f"recbole.model.{kind}.{name.lower()}"] = sys.modules[model.__module__]
    recbole.trainer.PRMKDTrainer = PRMKDTrainer
    recbole.trainer.RecformerTrainer = RecformerTrainer
    _read_our_properties()


def _read_our_properties() -> None:
    """Let RecBole's Config read the properties of our models, as it reads those of its own."""
    host = Config._load_internal_config_dict
    if hasattr(host, "_prmkd"):
        return

    def load(self: Config, model: str, model_class: type, dataset: str) -> None:
        host(self, properties_name(model_class), model_class, dataset)
        if model in TEACHERS:
            self.internal_config_dict.update(defaults())
        if model in TEACHERS or model in STUDENTS:
            self._update_internal_config_dict(str(properties_dir() / "model" / f"{model}.yaml"))
        if model in TEACHERS and self.external_config_dict.get("train_stage") == "pretrain":
            self._update_internal_config_dict(str(properties_dir() / "pretrain" / f"{model}.yaml"))

    load._prmkd = True  # type: ignore[attr-defined]
    Config._load_internal_config_dict = load


install()
