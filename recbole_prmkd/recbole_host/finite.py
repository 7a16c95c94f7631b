"""A training whose loss is no finite number ends with a sentence: which term, where, and which key to lower.

RecBole raises "Training loss is nan" and says nothing else; an infinite loss it lets through, whose gradients then make
all weights NaN.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from recbole.config import Config
from torch import Tensor, nn

from recbole_prmkd.errors import NotFinite
from recbole_prmkd.recbole_host.keys import teacher_settings

OWN, KD = "own loss", "kd_loss"


def watch_loss(trainer: Any, teacher: str | None = None) -> None:
    """Let the trainer raise NotFinite in place of RecBole's ValueError.

    Args:
        trainer: RecBole's; where it distils, its `loss_terms` are the two terms of the newest batch.
        teacher: the name of the teacher that it fits, whose settings have names of their own.
    """
    seen = {"epoch": -1, "batch": 0}

    def check(trainer: Any, loss: Tensor) -> None:
        epoch = max(trainer.train_loss_dict, default=trainer.start_epoch - 1) + 1
        if epoch != seen["epoch"]:
            seen.update(epoch=epoch, batch=0)
        finite = math.isfinite(loss) or (trainer.enable_scaler and not math.isnan(loss))  # the scaler skips that step
        if not finite:
            where = f"epoch {epoch}, batch {seen['batch']}"
            raise NotFinite(_sentence(trainer, where, "loss", float(loss), teacher))
        seen["batch"] += 1

    trainer._check_nan = MethodType(check, trainer)


def weights_are_finite(model: nn.Module) -> bool:
    """Whether every weight is a finite number."""
    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


def weights_sentence(trainer: Any, teacher: str | None = None) -> str:
    """What is said of a model whose weights are no finite numbers after the last batch."""
    return _sentence(trainer, "the last batch", "weight", math.nan, teacher)


@contextmanager
def overflow_explained(config: Config, teacher: str | None = None) -> Iterator[None]:
    """Inside, a setting that is beyond single precision raises NotFinite, which names it."""
    try:
        yield
    except (OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "without overflow" not in str(error):
            raise
        raise NotFinite(
            f"A number is too large for single precision ({error}): choose another value of "
            f"{' and of '.join(_extremes(config, teacher)) or 'the settings of the loss'}."
        ) from error


def _sentence(trainer: Any, where: str, what: str, value: float, teacher: str | None) -> str:
    config = trainer.config
    terms = {name: float(term) for name, term in getattr(trainer, "loss_terms", {}).items()}
    broken = [name for name, number in terms.items() if not math.isfinite(number)] or [OWN]
    shown = f" ({', '.join(f'{name} {number:.4g}' for name, number in terms.items())})" if terms else ""
    ways = []
    if KD in broken:
        ways += [
            f"lower kd_weight (now {config['kd_weight']})",
            f"raise kd_temperature (now {config['kd_temperature']})",
        ]
    ways.append(f"lower {_prefix(teacher)}learning_rate (now {config['learning_rate']})")
    if config["enable_amp"]:
        ways.append("set enable_amp=False")
    said = " ".join(ways)
    others = [named for named in _extremes(config, teacher) if named.partition(" ")[0] not in said.split()]
    if others:
        ways.insert(0, f"choose another value of {' and of '.join(others)}")
    return (
        f"The {what} of {teacher or config['model']} became {value} in {where}, by its {' and '.join(broken)}{shown}: "
        f"{', or '.join(ways)}."
    )


def _extremes(config: Config, teacher: str | None) -> list[str]:
    """The settings with a number that single precision hardly holds, as in `weight_decay (now 1e+300)`."""
    settings = config.final_config_dict
    if teacher is not None:
        settings = {_prefix(teacher) + key.lower(): settings[key] for key in teacher_settings(teacher, {})}
    return [f"{key} (now {value})" for key, value in settings.items() if any(map(_is_extreme, _numbers(value)))]


def _prefix(teacher: str | None) -> str:
    return f"kd_{teacher}_".lower() if teacher else ""


def _numbers(value: Any) -> list[float]:
    """The fractions in a setting."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
    return [part for part in parts if isinstance(part, float)]


def _is_extreme(value: float) -> bool:
    return not (value == 0 or 1e-20 < abs(value) < 1e20)
