"""What a KD loss cannot do with a student or its teachers, said before teachers are made."""

from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType, get_model

from recbole_prmkd.distil.baselines import Method, method_of
from recbole_prmkd.distil.candidates import SOURCES
from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.processes import ranks
from recbole_prmkd.students.traits import traits_of
from recbole_prmkd.teachers import teacher_class
from recbole_prmkd.teachers.ensemble import ENSEMBLE


def check_objective(config: Config) -> None:
    """Refuse settings of the KD loss that cannot be.

    Raises:
        UserError: names the setting and the way out.
    """
    if config["kd"] == ENSEMBLE:
        for key in ("kd_item_init", "kd_shuffled_teachers", "kd_guard"):
            if config[key] not in (False, "none"):
                raise UserError(f"kd=ensemble trains no student, so {key} has no use: leave it out.")
        if config["kd_confidence"] == "calibrated":
            raise UserError(
                "kd_confidence=calibrated goes by the target's popularity, which kd=ensemble does not know when it "
                "ranks: use kd_confidence=gate, or leave it out."
            )
        return
    _check_candidates(config)
    _check_shuffled(config)
    gammas = [config[f"kd_rank_by_{part}"] for part in ("position", "confidence", "consistency")]
    if config["kd_loss"] == "dllm2rec" and not any(gammas):
        raise UserError("All of kd_rank_by_position, _confidence and _consistency are 0: set one above 0.")
    if config["kd_loss"] == "dcd" and not config["kd_rank_discrepancy"]:
        raise UserError("kd_loss=dcd corrects ranks by kd_rank_discrepancy, which is 0: set it above 0.")
    method = method_of(config["kd_loss"])
    if method is not None:
        _check_method(config["kd_loss"], method, config)


def _in_pairs(config: Config) -> bool:
    """Whether the model is known to score (user, item) pairs alone."""
    model_class = get_model(config["model"])
    ranks_all = model_class.full_sort_predict is not AbstractRecommender.full_sort_predict
    return traits_of(model_class)[0].in_pairs or config["MODEL_TYPE"] == ModelType.CONTEXT or not ranks_all


def _check_candidates(config: Config) -> None:
    candidates = config["kd_candidates"]
    if candidates == "all" and _in_pairs(config):
        raise UserError(
            f"{config['model']} scores items one by one, and kd_candidates=all needs the scores of all: use "
            "kd_candidates=batch or teacher_top."
        )
    if "student" in SOURCES[candidates] and _in_pairs(config):
        raise UserError(
            f"{config['model']} scores items one by one, so what it ranks first cannot be found: use "
            "kd_candidates=batch or teacher_top."
        )


def _check_shuffled(config: Config) -> None:
    shuffled, teachers = config["kd_shuffled_teachers"], config["kd_teachers"]
    unknown = [name for name in shuffled if name not in teachers] if isinstance(shuffled, list) else []
    if unknown:
        raise UserError(
            f"kd_shuffled_teachers names {', '.join(unknown)}, but the teachers are {', '.join(teachers)}: name "
            "some of these, or write true for all."
        )


def _check_method(name: str, method: Method, config: Config) -> None:
    """What another paper's method cannot do."""
    if method.lists and "teacher" not in SOURCES[config["kd_candidates"]]:
        raise UserError(
            f"kd_loss={name} learns from what the teachers rank first: use kd_candidates=teacher_top or both_top, or "
            f"--kd={name}, which sets that."
        )
    if config["kd_history_negatives"]:
        raise UserError(f"kd_history_negatives has no use with kd_loss={name}: leave it out, or use kl, ce or mse.")
    if method.vectors and _in_pairs(config):
        raise UserError(
            f"kd_loss={name} compares vectors, and {config['model']} has none of users and items apart: use another "
            "kd_loss, or a student that scores by a product (SASRec, LightGCN)."
        )
    if method.vectors and all(teacher_class(teacher).scores_all_items for teacher in config["kd_teachers"]):
        raise UserError(
            f"kd_loss={name} compares vectors, and of {', '.join(config['kd_teachers'])} none has any: add a teacher "
            "such as UniSRec or Content."
        )
    if method.module is not None and ranks(config)[1] > 1:
        raise UserError(
            f"kd_loss={name} has parameters or a state of its own and runs in one process: leave --nproc out."
        )
