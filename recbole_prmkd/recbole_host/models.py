"""Models in RecBole's look-ups, and what RecBole knows of a model through its base classes.

A user's `class MyNeuMF(NeuMF)` has NeuMF's properties and trainer, as it has NeuMF's traits (`students.traits`).
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import recbole.config
import recbole.trainer
from recbole.config import Config
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import get_model, get_trainer

from recbole_prmkd.errors import UserError

_PROPERTIES = Path(recbole.config.__file__).parent.parent / "properties" / "model"

_KINDS = ("general", "context_aware", "sequential", "knowledge_aware")


def register_model(model: type) -> type:
    """Let `recbole.utils.get_model` find a class by its name. Safe to call again.

    RecBole resolves a model by the module name `recbole.model.<kind>_recommender.<name in lower case>`.

    Raises:
        UserError: it is no model class of RecBole's kind, or RecBole has another model of that name.
    """
    if not (isinstance(model, type) and issubclass(model, AbstractRecommender)):
        raise UserError(f"{model!r} is no RecBole model: give a subclass of one of RecBole's abstract recommenders.")
    names = [f"recbole.model.{kind}_recommender.{model.__name__.lower()}" for kind in _KINDS]
    there = [sys.modules[name] for name in names if name in sys.modules]
    if model.__module__.startswith("recbole.model.") or any(model in vars(module).values() for module in there):
        return model
    name = names[0]
    taken = any(find_spec(name) and not getattr(sys.modules.get(name), "_of_user", False) for name in names)
    if _is_recboles(model.__name__) or taken:  # RecBole's look-up reads small letters
        raise UserError(
            f"RecBole has a model {model.__name__} already, small and capital letters aside: give your class another "
            "name."
        )
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update({model.__name__: model, "_of_user": True})
    sys.modules[name] = module
    return model


def properties_name(model: type) -> str:
    """The nearest class among a model and its bases that RecBole has properties for; the model's own name if none."""
    return next((base.__name__ for base in model.__mro__ if _is_recboles(base.__name__)), model.__name__)


@contextmanager
def named_as_base(config: Config) -> Iterator[None]:
    """Inside, a user's model goes by the name of its base, by which RecBole chooses data sets and loaders."""
    name, model = config["model"], get_model(config["model"])
    if not model.__module__.startswith(("recbole.model.", "recbole_prmkd.")):
        config["model"] = properties_name(model)
    try:
        yield
    finally:
        config["model"] = name


def host_trainer(config: Config, model: type) -> type:
    """RecBole's trainer class of a model: of the nearest base that has one of its own, else by the model's type."""
    for base in model.__mro__:
        trainer = getattr(recbole.trainer, f"{base.__name__}Trainer", None)
        if trainer is not None and base.__name__ != "PRMKD":
            return trainer
    return get_trainer(config["MODEL_TYPE"], model.__name__)


def validates(config: Config) -> bool:
    """Whether the training comes to an epoch after which RecBole validates, where there is a validation part.

    RecBole lowers eval_step to the number of epochs, and trains a model such as Pop for one epoch, whatever the number.
    """
    epochs: int = config["epochs"]
    trains_once = issubclass(host_trainer(config, get_model(config["model"])), recbole.trainer.TraditionalTrainer)
    return 0 < min(config["eval_step"], epochs) <= (1 if trains_once else epochs)


def _is_recboles(name: str) -> bool:
    return (_PROPERTIES / f"{name}.yaml").is_file()
