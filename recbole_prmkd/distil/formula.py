"""What an objective computes, in one line for the log."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recbole_prmkd.distil.objective import Objective


def formula(objective: "Objective") -> str:
    """The loss as the log has it on the first batch."""
    config = objective.config
    names = [teacher.name for teacher in objective.teacher_cache.teachers]
    target = " + ".join(f"w_{name} p_{name}" for name in names)
    if config["kd_fusion"] == "product" and objective.held_out.differ:
        target = " ".join(f"p_{name} ** {config['kd_confidence']}_{name}" for name in names)
    elif config["kd_fusion"] == "product":
        power = objective.teacher_cache.trust.sharpness
        target = " ".join(f"p_{name} ** ({power:.3g} w_{name})" for name in names)
    which = config["kd_shuffled_teachers"]
    of_which = f"{' and '.join(which)} " if isinstance(which, list) else ""
    shuffled = f", {of_which}shuffled over the items" if which else ""
    curriculum = config["kd_curriculum"]
    if curriculum != "none":
        start, length = config["kd_pacing_start"], config["kd_pacing_length"]
        curriculum += f", {config['kd_pacing']} from {start} of the examples to all in {length} epochs"
    masks = {"kd_history_mask": "history", "kd_false_negative_mask": "false negatives"}
    masked = " and ".join(name for key, name in masks.items() if config[key]) or "nothing"
    history = " and with the history as negatives" if objective.with_negatives else ""
    few = {1: " = 1 with one teacher", 2: ", of two teachers both are consistent"}
    return (
        f"loss = rec_loss + {objective.weight:g} x {config['kd_loss']}(target, student / {objective.temperature:g}), "
        f"target = {target}{shuffled}, "
        f"w = confidence[{config['kd_confidence']}] x consistency[{config['kd_consistency']}, "
        f"damping {config['kd_consistency_damping']}]{few.get(len(objective.teacher_cache.teachers), '')}, "
        f"curriculum[{curriculum}], candidates[{config['kd_candidates']}, without {masked}{history}]"
    )
