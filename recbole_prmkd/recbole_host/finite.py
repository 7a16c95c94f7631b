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

OWN, KD = "own loss", "kd_loss"


def watch_loss(trainer: Any, key: str = "learning_rate") -> None:
    """Let the trainer raise NotFinite in place of RecBole's ValueError.

    Args:
        trainer: RecBole's; where it distils, its `loss_terms` are the two terms of the newest batch.
        key: the setting of its learning rate.
    """
    seen = {"epoch": -1, "batch": 0}

    def check(trainer: Any, loss: Tensor) -> None:
        epoch = max(trainer.train_loss_dict, default=trainer.start_epoch - 1) + 1
        if epoch != seen["epoch"]:
            seen.update(epoch=epoch, batch=0)
        finite = math.isfinite(loss) or (trainer.enable_scaler and not math.isnan(loss))  # the scaler skips that step
        if not finite:
            where = f"epoch {epoch}, batch {seen['batch']}"
            raise NotFinite(_sentence(trainer, where, f"The loss of {trainer.config['model']}", float(loss), key))
        seen["batch"] += 1

    trainer._check_nan = MethodType(check, trainer)


def weights_are_finite(model: nn.Module) -> bool:
    """Whether every weight is a finite number."""
    return all(bool(torch.isfinite(weight).all()) for weight in model.parameters())


def weights_sentence(trainer: Any) -> str:
    """What is said of a student whose weights are no finite numbers after the last batch."""
    return _sentence(trainer, "the last batch", f"A weight of {trainer.config['model']}", math.nan, "learning_rate")


@contextmanager
def overflow_explained(config: Config) -> Iterator[None]:
    """Inside, a setting that is beyond single precision raises NotFinite, which names it."""
    try:
        yield
    except (OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "without overflow" not in str(error):
            raise
        numbers = {key: value for key, value in config.final_config_dict.items() if isinstance(value, float)}
        named = [f"{key} (now {value:g})" for key, value in numbers.items() if value and not 1e-30 < abs(value) < 1e30]
        raise NotFinite(
            f"A number is too large for single precision ({error}): choose another value of "
            f"{' and of '.join(named) or 'the settings of the loss'}."
        ) from error


def _sentence(trainer: Any, where: str, what: str, value: float, key: str) -> str:
    config = trainer.config
    terms = {name: float(term) for name, term in getattr(trainer, "loss_terms", {}).items()}
    broken = [name for name, number in terms.items() if not math.isfinite(number)] or [OWN]
    shown = f" ({', '.join(f'{name} {number:.4g}' for name, number in terms.items())})" if terms else ""
    rate = f"lower {key} (now {config[key]})" if key in config else f"lower {key}"
    ways = [
        f"lower kd_weight (now {config['kd_weight']})",
        f"raise kd_temperature (now {config['kd_temperature']})",
        rate,
    ]
    if KD not in broken:
        ways = [rate]
    if config["enable_amp"]:
        ways.append("set enable_amp=False")
    return f"{what} became {value} in {where}, by its {' and '.join(broken)}{shown}: {', or '.join(ways)}."
