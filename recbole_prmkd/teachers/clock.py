"""`kd_teacher_minutes`: the end of a teacher's training by the clock."""

import time
from collections.abc import Callable
from logging import getLogger


class TimeIsUp(Exception):
    """Ends a training whose best weights are saved already."""


def clock(name: str, minutes: float | None) -> Callable[[int, float], None] | None:
    """What ends the training after the epoch in which the time is up, for RecBole's `callback_fn`; None: no limit."""
    if minutes is None:
        return None
    stop = time.monotonic() + 60 * minutes

    def after_epoch(epoch: int, score: float) -> None:
        if time.monotonic() > stop:
            getLogger().info(
                f"{name} stops after epoch {epoch}: kd_teacher_minutes is {minutes:g}; more may be better."
            )
            raise TimeIsUp

    return after_epoch
