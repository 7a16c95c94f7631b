"""`kd_teacher_minutes`: the end of a teacher's training by the clock, within an epoch where one takes longer."""

import time
from collections.abc import Callable, Iterator
from logging import getLogger
from typing import Any


class TimeIsUp(Exception):
    """Ends a training whose best weights are saved already."""


class _Until:
    """A training loader that gives no further batch when the time is up, but at least one."""

    def __init__(self, loader: Any, stop: float) -> None:
        self._loader, self._stop = loader, stop

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            yield batch
            if time.monotonic() > self._stop:
                return

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def clock(trainer: Any, name: str, minutes: float | None) -> Callable[[int, float], None] | None:
    """Make the trainer end its epoch when the time is up; None for the minutes: no limit.

    Returns:
        what ends the training after that epoch and its validation, for RecBole's `callback_fn`.
    """
    if minutes is None:
        return None
    stop, host = time.monotonic() + 60 * minutes, trainer._train_epoch
    trainer._train_epoch = lambda loader, *rest, **more: host(_Until(loader, stop), *rest, **more)

    def after_epoch(epoch: int, score: float) -> None:
        if time.monotonic() > stop:
            getLogger().info(f"{name} stops in epoch {epoch}: kd_teacher_minutes is {minutes:g}; more may be better.")
            raise TimeIsUp

    return after_epoch
