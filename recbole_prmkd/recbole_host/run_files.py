"""Where RecBole reads and writes: no command line; log, TensorBoard curves and checkpoint in a folder we name.

RecBole writes to ./log, ./log_tensorboard and ./saved of the working directory, and its logger keeps the first run's
handlers for good. Nothing else of it is changed here.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import init_logger
from torch.utils.tensorboard import SummaryWriter

from recbole_prmkd.recbole_host.finite import watch_loss
from recbole_prmkd.recbole_host.processes import any_device


@contextmanager
def run_logging(config: Config, folder: Path) -> Iterator[None]:
    """RecBole's logger for the length of a run, its file inside `folder`; earlier handlers come back afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    here = os.getcwd()
    os.chdir(folder)  # init_logger writes below ./log
    try:
        init_logger(config)
    finally:
        os.chdir(here)
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers = before
        root.setLevel(level)


@contextmanager
def no_command_line() -> Iterator[None]:
    """Config reads sys.argv; inside, it finds nothing there, for a model that those options are not meant for."""
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = arguments


def quiet_trainer(trainer_class: type, config: Config, model: AbstractRecommender, folder: Path) -> Any:
    """A RecBole trainer whose curves and checkpoint go to `folder`."""
    curves = str(folder / "tensorboard")
    board = mock.patch("recbole.trainer.trainer.get_tensorboard", lambda logger: SummaryWriter(curves))
    with board, any_device(config["use_gpu"]):
        kept = config["checkpoint_dir"]
        config["checkpoint_dir"] = str(folder)
        trainer = trainer_class(config, model)
        config["checkpoint_dir"] = kept
    trainer.saved_model_file = str(folder / f"{config['model']}.pth")
    watch_loss(trainer)
    return trainer
