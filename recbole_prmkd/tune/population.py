"""What a population (PBT) may change while a student trains: nothing that another member's student would not fit."""

from typing import Any

from recbole.utils import get_model, init_seed
from recbole.utils.argument_list import training_arguments

from recbole_prmkd.data.split import load_split
from recbole_prmkd.errors import UserError
from recbole_prmkd.tune.plan import Plan

# What a training has once, at its start.
_FIXED = {"kd", "kd_teachers", "kd_item_init", "kd_item_init_std", "kd_shared_prefixes", "learner", "seed", "epochs"}


def check_population(plan: Plan) -> None:
    """Refuse keys of the search space that change the student's shapes, or that only its start reads.

    Whether a key of the model changes shapes is seen by building the student with each of its values.

    Raises:
        UserError: such a key, by name.
    """
    domains = {domain.key: domain for domain in plan.sweep.domains}
    for key in domains:
        if key in _FIXED:
            raise UserError(f"{key} cannot change while a student trains: take it out of the space, or leave pbt.")
    of_model = [key for key in domains if not key.startswith("kd_") and key not in training_arguments]
    if not of_model:
        return
    first = {key: domain.witnesses[0] for key, domain in domains.items()}
    config = plan.config(first)
    init_seed(config["seed"], config["reproducibility"])
    dataset = load_split(config).train_data._dataset
    for key in of_model:
        shapes: list[Any] = []
        for value in domains[key].witnesses:
            config = plan.config({**first, key: value})
            student = get_model(config["model"])(config, dataset)
            shapes.append({name: tensor.shape for name, tensor in student.state_dict().items()})
        if any(other != shapes[0] for other in shapes):
            raise UserError(
                f"{key} changes the shapes of {plan.model}, so with pbt no trial could take over another's student: "
                "take it out of the space, or choose another scheduler."
            )
