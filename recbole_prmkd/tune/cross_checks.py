"""Whether the values of several keys fit together, and with the fixed settings: checked before Ray starts."""

from recbole.config import Config
from recbole.utils.argument_list import training_arguments

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.checks import check_distillation
from recbole_prmkd.recbole_host.keys import WARM_START, has_teachers
from recbole_prmkd.teachers.ensemble import ENSEMBLE
from recbole_prmkd.tune.plan import Plan
from recbole_prmkd.tune.settings import Pbt

# What a student without teachers has.
ALONE = {"kd_item_init", "kd_item_init_std", "kd_shared_prefixes"}
# What decides whether there is a loss to distil with.
_LOSS = ("kd", "kd_loss", "kd_candidates", "kd_rank_by_position", "kd_rank_by_confidence", "kd_rank_by_consistency")
# What a training reads once, at its start.
_FIXED = {
    "kd",
    "kd_loss",
    "kd_teachers",
    "kd_item_init",
    "kd_item_init_std",
    "kd_shared_prefixes",
    "learner",
    "seed",
    "epochs",
}


def check_together(plan: Plan) -> None:
    """Reject values that no trial could use with the other settings.

    Raises:
        UserError: the key is named.
    """
    base, kds = plan.config(), plan.values("kd")
    searched = [domain.key for domain in plan.domains]
    if ENSEMBLE in kds:
        raise UserError("kd=ensemble trains nothing, so there is nothing to search: run it without --tune.")
    if True in plan.values("kd_guard"):
        raise UserError(
            "A sweep chooses its trials on validation, so kd_guard has no use there: leave it out, and search kd over "
            "none, warm_start and the KD method."
        )
    for key in ("epochs", "eval_step"):
        if min(plan.values(key)) < 1:
            raise UserError(f"A sweep compares trials by validation: set {key} to 1 or more.")
    if "seed" in searched and base["eval_args"]["order"] == "RO" and not base["benchmark_filename"]:
        raise UserError(
            "seed cannot be searched: eval_args splits at random (order: RO), and all trials share the split of one "
            "seed, which best.yaml would not have; use --kd_protocol=ranking or order: TO, or run one sweep per seed."
        )
    ignored = [key for key in searched if key.startswith("kd_") and key not in ALONE]
    if ignored and not {*kds} - {"none", WARM_START, None}:
        alone = " or ".join(str(kd or "none") for kd in kds)
        raise UserError(
            f"{', '.join(ignored)} would change nothing, since kd is {alone}: add --kd=prmkd, or take out of the "
            "space what starts with kd_."
        )
    _check_losses(plan)
    if isinstance(plan.sweep.scheduler, Pbt):
        _check_population(plan)


def _check_losses(plan: Plan) -> None:
    """Each choice must make a loss with some values of the other keys; single trials without one fail by themselves."""
    configs = [config for config in plan.configs(*_LOSS) if has_teachers(config)]
    errors = [_error(config) for config in configs]
    if errors and all(errors):
        raise UserError(str(errors[0]))
    for domain in plan.domains:
        for value in domain.values if domain.key in _LOSS and domain.kind == "choice" else ():
            own = [error for config, error in zip(configs, errors, strict=True) if config[domain.key] == value]
            if own and all(own):
                raise UserError(f"The search space of {domain.key} holds {value!r}, which no trial can use: {own[0]}")


def _error(config: Config) -> UserError | None:
    try:
        check_distillation(config)
    except UserError as error:
        return error
    return None


def _check_population(plan: Plan) -> None:
    """Reject keys that PBT cannot change while a student trains, since it takes over a student of other settings."""
    for domain in plan.domains:
        if domain.key in _FIXED:
            raise UserError(f"{domain.key} cannot change while a student trains: take it out of the space or drop pbt.")
        of_student = not domain.key.startswith("kd_") and domain.key not in training_arguments
        if of_student and not any(isinstance(value, float) for value in domain.representatives):
            raise UserError(
                f"With pbt a trial takes over another's student, whose layers {domain.key} may change: take it out of "
                "the space or drop pbt; of the student's own keys only real numbers, such as dropout, can change."
            )
