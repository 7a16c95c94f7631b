"""What the values of several keys make of a trial together, and with the fixed settings: checked before Ray starts."""

import itertools
import json
from typing import Any

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.checks import check_distillation
from recbole_prmkd.tune.plan import Plan
from recbole_prmkd.tune.space import Domain

# What a student without teachers has.
_ALONE = {"kd_item_init", "kd_item_init_std", "kd_shared_prefixes"}
# What decides whether there is a loss to distil with.
_LOSS = {"kd", "kd_loss", "kd_candidates", "kd_rank_by_position", "kd_rank_by_confidence", "kd_rank_by_consistency"}


def check_together(plan: Plan) -> None:
    """Refuse values that no trial could use with the other settings.

    Raises:
        UserError: the key is named.
    """
    base = plan.config(plan.first)
    searched = [domain.key for domain in plan.sweep.domains]
    if min(plan.values("epochs")) < 1:
        raise UserError("A sweep compares trials by validation: set epochs to 1 or more.")
    if "seed" in searched and base["eval_args"]["order"] == "RO" and not base["benchmark_filename"]:
        raise UserError(
            "seed cannot be searched: eval_args splits at random (order: RO), and all trials share the split of one "
            "seed, which best.yaml would not have; use --kd_protocol=ranking or order: TO, or run one sweep per seed."
        )
    unheard = [key for key in searched if key.startswith("kd_") and key not in _ALONE]
    if unheard and not {*plan.values("kd")} - {"none", None}:
        raise UserError(
            f"{', '.join(unheard)} would change nothing, since kd is none: add --kd=prmkd, or take out of the "
            "space what starts with kd_."
        )
    _check_losses(plan)


def _check_losses(plan: Plan) -> None:
    """Each value must make a loss with some values of the other keys; single trials without one fail by themselves."""
    domains = [domain for domain in plan.sweep.domains if domain.key in _LOSS]
    left = {(domain.key, _name(domain, value)) for domain in domains for value in domain.witnesses}
    refused: dict[tuple[str, str], UserError] = {}
    for drawn in itertools.product(*(domain.witnesses for domain in domains)):
        names = {(domain.key, _name(domain, value)) for domain, value in zip(domains, drawn, strict=True)}
        if domains and not left & names:
            continue
        config = plan.config(plan.first | {domain.key: value for domain, value in zip(domains, drawn, strict=True)})
        try:
            if config["kd"] != "none":
                check_distillation(config)
        except UserError as error:
            if not domains:
                raise
            refused |= dict.fromkeys(names - refused.keys(), error)
        else:  # without teachers any loss is legal, and none is used
            left -= names if config["kd"] != "none" else {name for name in names if name[0] == "kd"}
    for key, name in sorted(left):
        reason = refused[key, name]
        raise UserError(f"The search space of {key} holds {name}, which no trial can use: {reason}") from reason


def _name(domain: Domain, value: Any) -> str:
    """One value of a choice; a range, of which an end alone may be of no use, is one thing."""
    return json.dumps(value) if domain.kind == "choice" else str(domain)
