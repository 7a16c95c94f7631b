"""Which item vectors a student starts from, by `kd_item_init`."""

from collections.abc import Mapping
from logging import getLogger

from recbole.config import Config
from recbole.utils import ModelType, get_model

from recbole_prmkd.data.split import Split
from recbole_prmkd.recbole_host.keys import has_teachers, kind_of
from recbole_prmkd.students.defaults import own_step
from recbole_prmkd.students.traits import traits_of
from recbole_prmkd.teachers import teacher_class
from recbole_prmkd.teachers.content import Content
from recbole_prmkd.teachers.controls import Control
from recbole_prmkd.teachers.data import teacher_data
from recbole_prmkd.teachers.holdout import Ranked, popularity


def source_of(config: Config) -> str:
    """What the student's items start from: `none`, `text`, or a teacher's name."""
    if config["kd_item_init"] != "auto":
        return config["kd_item_init"]
    teachers = config["kd_teachers"] if has_teachers(config) else []
    if not teachers or any(teacher_class(name).item_text != "nothing" for name in teachers):
        return "text"
    known = [name for name in teachers if not issubclass(teacher_class(name), Control)]
    return next((name for name in known if not teacher_class(name).scores_all_items), "none")


def useful_source(config: Config, ranked: Mapping[str, Ranked], split: Split) -> str:
    """The same; with `auto` and the teacher Content none, where texts rank the holdout worse than popularity.

    Such texts say little of what comes next, and a sequential student that starts from them ends below one that does
    not. Recurrent ones and those without order gain from any text, since they learn slowly from random vectors
    (docs/experiments.md).
    """
    source = source_of(config)
    content = next((its for name, its in ranked.items() if kind_of(name) == Content.__name__), None)
    sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
    if config["kd_item_init"] != "auto" or source != "text" or not sequential:
        return source
    if content is None or not len(content.log_likelihood):
        return source
    if config["kd_shuffled_teachers"]:  # the ranks are then those of other items' texts
        return source
    least = popularity(teacher_data(split, config["kd_teacher_seed"]))
    if content.ndcg >= least.ndcg or is_recurrent(config, split):
        return source
    getLogger().info(
        f"kd_item_init=auto takes no start from text, since texts rank the held-out examples worse than popularity "
        f"(NDCG@10 {content.ndcg:.4f} to {least.ndcg:.4f})."
    )
    return "none"


def is_recurrent(config: Config, split: Split) -> bool:
    """Whether the student is recurrent, which its layers show: one is built for it and dropped."""
    model_class = get_model(config["model"])
    student, (traits, _) = model_class(config, split.train_data._dataset), traits_of(model_class)
    return own_step(student, traits, pairs=False) == "recurrent"
