"""Which item vectors a student starts from, by `kd_item_init`."""

from recbole.config import Config

from recbole_prmkd.recbole_host.keys import has_teachers
from recbole_prmkd.teachers import teacher_class


def source_of(config: Config) -> str:
    """What the student's items start from: `none`, `text`, or a teacher's name."""
    if config["kd_item_init"] != "auto":
        return config["kd_item_init"]
    teachers = config["kd_teachers"] if has_teachers(config) else []
    if not teachers or any(teacher_class(name).item_text != "nothing" for name in teachers):
        return "text"
    return next((name for name in teachers if not teacher_class(name).scores_all_items), "none")
