"""Where RecBole reads and writes: no command line; log, TensorBoard curves and checkpoint in a folder we name.

RecBole writes to ./log, ./log_tensorboard and ./saved of the working directory, and its logger keeps the first run's
handlers for good. Nothing else of it is changed here.
"""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import init_logger
from torch.utils.tensorboard import SummaryWriter

from recbole_prmkd.errors import UserError
from recbole_prmkd.recbole_host.boundary import whole_run
from recbole_prmkd.recbole_host.finite import watch_loss
from recbole_prmkd.recbole_host.memory import large_blocks_kept
from recbole_prmkd.recbole_host.processes import any_device, evaluate_once
from recbole_prmkd.storage.disk import is_fault, working, writing


@contextmanager
def run_logging(config: Config, folder: Path) -> Iterator[None]:
    """RecBole's logger for the length of a run, its file inside `folder`; earlier handlers come back afterwards.

    Raises:
        UserError: a disk fails during the run, wherever that is noticed; memory does not suffice; RecBole gives up.
    """
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    here = os.getcwd()
    try:
        with writing(folder / "log"):
            os.chdir(folder)  # init_logger writes below ./log
            try:
                init_logger(config)
            finally:
                os.chdir(here)
        for handler in root.handlers:
            _say_faults_once(handler)
        with _quiet_threads(), whole_run(config), working():
            yield
    finally:
        for handler in root.handlers:
            with suppress(OSError):  # it flushes to a disk that may be full
                handler.close()
        root.handlers = before
        root.setLevel(level)


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """TensorBoard writes in a thread, which shows its traceback beside the sentence that the run ends with."""
    otherwise, earlier = threading.excepthook, {*threading.enumerate()}

    def show(given: threading.ExceptHookArgs) -> None:
        if given.exc_value is None or not is_fault(given.exc_value):
            otherwise(given)

    threading.excepthook = show
    try:
        yield
    except UserError:
        for thread in {*threading.enumerate()} - earlier:
            if type(thread).__module__.startswith("tensorboard."):
                thread.join(timeout=0.2)  # it may be about to end
        raise
    finally:
        threading.excepthook = otherwise


def _say_faults_once(handler: logging.Handler) -> None:
    """A log that cannot be written is said once, not with a traceback for each line."""
    said: list[str] = []
    otherwise = handler.handleError

    def say(record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            otherwise(record)
        elif not said:
            said.append(str(error))
            with suppress(OSError):
                print(f"The log is not complete: {error}", file=sys.stderr)

    handler.handleError = say  # type: ignore[method-assign]


@contextmanager
def no_command_line() -> Iterator[None]:
    """Config reads sys.argv; inside, it finds nothing there, for a model that those options are not meant for."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments


def quiet_trainer(trainer_class: type, config: Config, model: AbstractRecommender, folder: Path) -> Any:
    """A RecBole trainer whose curves and checkpoint go to `folder`, and which keeps large blocks in training."""
    curves = str(folder / "tensorboard")
    board = mock.patch("recbole.trainer.trainer.get_tensorboard", lambda logger: SummaryWriter(curves))
    with board, any_device(config["use_gpu"]):
        kept = config["checkpoint_dir"]
        config["checkpoint_dir"] = str(folder)
        trainer = trainer_class(config, model)
        config["checkpoint_dir"] = kept
    evaluate_once(trainer, config)
    trainer.saved_model_file = str(folder / f"{config['model']}.pth")
    save = trainer._save_checkpoint

    def save_or_say(*given: Any, **named: Any) -> None:
        with writing(Path(trainer.saved_model_file)):
            save(*given, **named)

    trainer._save_checkpoint = save_or_say
    trainer._train_epoch = large_blocks_kept()(trainer._train_epoch)
    watch_loss(trainer)
    return trainer
