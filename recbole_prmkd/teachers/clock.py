"""How long a teacher's training takes: a forecast from its first steps, and its end by `kd_teacher_minutes`.

Both are by the wall clock, on a busy machine too: the limit is a promise of when the teacher is ready. Time of the
process would give the same teacher there, but with many threads it says little of how long a user waits.
"""

import time
from collections.abc import Callable, Iterator
from logging import getLogger
from typing import Any

_TIMED = 5  # steps, of which the first is not counted: it includes what is set up once


class TimeIsUp(Exception):
    """Ends a training whose best weights are saved already."""


class _Watched:
    """A training loader that reports after a few batches, and gives no further one when the time is up.

    It gives one batch at least. on_steps: takes the seconds of one step, once.
    """

    def __init__(self, loader: Any, stop: float, on_steps: Callable[[float], None]) -> None:
        vars(self).update(getattr(loader, "__dict__", {}))  # a trainer may read the attributes there
        self.watched, self._stop = loader, stop
        self._on_steps: Callable[[float], None] | None = on_steps

    def __iter__(self) -> Iterator[Any]:
        first = 0.0
        for number, batch in enumerate(self.watched):
            if number == 1:
                first = time.monotonic()
            if number == _TIMED and self._on_steps is not None:
                self._on_steps((time.monotonic() - first) / (_TIMED - 1))
                self._on_steps = None
            yield batch
            if time.monotonic() > self._stop:
                return

    def __len__(self) -> int:
        return len(self.watched)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.watched, name)


def clock(trainer: Any, name: str, minutes: float | None) -> Callable[[int, float], None] | None:
    """Let the trainer say how long it will take, and end its epoch when the time is up; None for the minutes: no limit.

    The forecast is a line in the log after the first five steps; an epoch of fewer steps has none.

    Returns:
        what ends the training after that epoch and its validation, for RecBole's `callback_fn`.
    """
    stop = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    host, watched = trainer._train_epoch, None

    def train_epoch(loader: Any, *rest: Any, **more: Any) -> Any:
        nonlocal watched
        if watched is None or watched.watched is not loader:  # a trainer may keep what it has made of its loader
            watched = _Watched(loader, stop, lambda step: forecast(trainer, name, step, loader, minutes))
        return host(watched, *rest, **more)

    trainer._train_epoch = train_epoch
    if minutes is None:
        return None

    def after_epoch(epoch: int, score: float) -> None:
        if time.monotonic() > stop:
            getLogger().info(f"{name} stops in epoch {epoch}: kd_teacher_minutes is {minutes:g}; more may be better.")
            raise TimeIsUp

    return after_epoch


def forecast(trainer: Any, name: str, step: float, loader: Any, minutes: float | None) -> None:
    """Log in one line how long an epoch takes without its validation, and the whole at most; step: seconds of one."""
    epoch = step * len(loader)
    line = f"{name}: an epoch takes about {_words(epoch)} on this {trainer.device.type}"
    whole = f"all {trainer.epochs} epochs {_words(epoch * trainer.epochs)}; it stops earlier when it gains no more"
    if minutes is not None and epoch * trainer.epochs > 60 * minutes:
        whole += f", and after {minutes:g} minutes in any case (kd_teacher_minutes)"
    getLogger().info(f"{line}, {whole}.")


def _words(seconds: float) -> str:
    """Seconds, minutes or hours."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.2g} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
