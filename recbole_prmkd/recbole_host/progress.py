"""Where a training stands between two epochs: enough to go on in another process as if it had never stopped.

The student, every optimizer, RecBole's counters and best score, and all random states: Python's, numpy's, torch's,
the loaders' own and that of the objective's candidates. Beside its weights a student may hold numbers and arrays that
change (a counter of steps, a shuffled list): of these, what has changed since `begin`. What the curriculum shows is a
pure function of seed and epoch and needs no state. The file holds tensors and plain values only and is read with
`weights_only=True`.
"""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import AbstractDataLoader
from torch import Tensor, nn
from torch.optim import Optimizer

from recbole_prmkd.storage.store import digest
from recbole_prmkd.students.probe import probed_state, restore_probed
from recbole_prmkd.students.windows import WindowLoader

FILE = "progress.pt"


def begin(trainer: Any) -> None:
    """Note what the student holds beside its weights, before the first epoch or `restore`."""
    trainer.others_at_start = trainer.model.other_parameter()
    trainer.held_at_start = {key: _mark(value) for key, value in _held(trainer.model)}


def captured(trainer: Any, train_data: Any, epoch: int) -> dict[str, Any]:
    """The state after this epoch's validation; tensors are those in use, so write it before the next step."""
    return {
        "epoch": epoch,
        "cur_step": trainer.cur_step,
        "best_valid_score": float(trainer.best_valid_score),
        "best_valid_result": {key: float(value) for key, value in (trainer.best_valid_result or {}).items()},
        "train_losses": {number: float(loss) for number, loss in trainer.train_loss_dict.items()},
        "history": getattr(trainer, "history", []),
        "student": trainer.model.state_dict(),
        # Without what it was built with: modules (DIN's), whose weights are the student's, and tables (RippleNet's).
        "other_parameter": {
            name: value
            for name, value in trainer.model.other_parameter().items()
            if isinstance(value, Tensor) or value is not trainer.others_at_start.get(name)
        },
        "held": [[*key, _kept(value)] for key, value in _held(trainer.model) if _changed(trainer, key, value)],
        "student_probe": probed_state(objective.student) if (objective := _objective(trainer)) else None,
        "kd_module": objective.baseline.state() if objective and objective.baseline else None,
        "optimizers": {name: optimizer.state_dict() for name, optimizer in _optimizers(trainer)},
        "random": random_states(),
        "generators": {name: generator.get_state() for name, generator in _generators(trainer, train_data)},
    }


def restore(state: Mapping[str, Any], trainer: Any, train_data: Any) -> None:
    """Put the state into a trainer of the same student; the settings in force (learning rate...) are the trainer's."""
    trainer.model.load_state_dict(state["student"])
    trainer.model.load_other_parameter(state["other_parameter"])
    for module, name, value in state.get("held", []):
        _hold(trainer.model.get_submodule(module), name, value, trainer.device)
    _restore_objective(state, trainer)
    for name, kept in state["optimizers"].items():
        optimizer = getattr(trainer, name)
        optimizer.load_state_dict(_of_groups(kept, len(optimizer.param_groups)))
        for group in optimizer.param_groups:
            group["lr"] = trainer.learning_rate
            if "weight_decay" in group:
                group["weight_decay"] = trainer.weight_decay
    trainer.cur_step = state["cur_step"]
    trainer.best_valid_score = state["best_valid_score"]
    trainer.best_valid_result = dict(state["best_valid_result"]) or None  # as before a validation
    trainer.train_loss_dict.update(state["train_losses"])
    if hasattr(trainer, "history"):
        trainer.history.extend(state["history"])
    # A student that early stopping had ended is not trained on.
    trainer.start_epoch = trainer.epochs if trainer.cur_step > trainer.stopping_step else state["epoch"] + 1
    if isinstance(train_data, WindowLoader):
        train_data.epoch = trainer.start_epoch
    for name, generator in _generators(trainer, train_data):
        if name in state["generators"]:  # a population may turn kd_loss on, whose generator then starts
            generator.set_state(state["generators"][name])
    set_random_states(state["random"])


def _of_groups(kept: Mapping[str, Any], number: int) -> dict[str, Any]:
    """An optimizer's state without the groups of a KD method's own parameters, where that method is not in use."""
    groups = kept["param_groups"][:number]
    parameters = {parameter for group in groups for parameter in group["params"]}
    own = {parameter: value for parameter, value in kept["state"].items() if parameter in parameters}
    return {**kept, "param_groups": groups, "state": own}


def _restore_objective(state: Mapping[str, Any], trainer: Any) -> None:
    """What the first batch has decided, and what only training has; before the optimizers, which may train it."""
    objective = _objective(trainer)
    if objective is None:
        return
    if state.get("student_probe"):
        restore_probed(objective.student, state["student_probe"])
    if objective.baseline is not None and state.get("kd_module"):
        objective.baseline.restore(state["kd_module"], trainer.optimizer)


def save(state: Mapping[str, Any], folder: Path, name: str = FILE) -> None:
    """Write the state into a folder."""
    torch.save(dict(state), folder / name)


def load(folder: Path) -> dict[str, Any]:
    """The state in a folder, on the CPU."""
    return torch.load(folder / FILE, map_location="cpu", weights_only=True)


def _objective(trainer: Any) -> Any:
    return getattr(trainer, "objective", None)


def _optimizers(trainer: Any) -> list[tuple[str, Optimizer]]:
    """Each once: RecVAE's trainer calls the one in use `optimizer` too, which is another at the start."""
    named = {id(value): (name, value) for name, value in sorted(vars(trainer).items()) if isinstance(value, Optimizer)}
    return list(named.values())


def _held(model: nn.Module) -> Iterator[tuple[tuple[str, str], Any]]:
    """Numbers, tensors and arrays on the student's modules that its state_dict lacks, by module and name."""
    elsewhere = getattr(model, "other_parameter_name", [])
    for module, part in model.named_modules():
        for name, value in vars(part).items():
            plain = isinstance(value, int | float | Tensor) and not isinstance(value, bool)
            if (plain or (isinstance(value, np.ndarray) and value.dtype != object)) and name not in elsewhere:
                yield (module, name), value


def _mark(value: Any) -> Any:
    """What shows a later change of a value, its tensor's own count of changes included."""
    if isinstance(value, Tensor):
        return value, value._version
    return digest([value]) if isinstance(value, np.ndarray) else value


def _changed(trainer: Any, key: tuple[str, str], value: Any) -> bool:
    before, now = trainer.held_at_start.get(key), _mark(value)
    if isinstance(before, tuple) and isinstance(now, tuple):
        return before[0] is not now[0] or before[1] != now[1]
    return type(before) is not type(now) or before != now  # RaCT's number becomes a tensor


def _kept(value: Any) -> Any:
    """A value as the file holds it; an array is a list of one tensor."""
    if isinstance(value, np.ndarray):
        return [torch.from_numpy(value.copy())]
    if isinstance(value, Tensor):
        return value.detach()
    return int(value) if isinstance(value, int) else float(value)


def _hold(module: nn.Module, name: str, kept: Any, device: torch.device) -> None:
    before = vars(module).get(name)
    if isinstance(kept, Tensor):
        kept = kept.to(before.device if isinstance(before, Tensor) else device)
    setattr(module, name, kept[0].numpy() if isinstance(kept, list) else kept)


def _generators(trainer: Any, train_data: Any) -> Iterator[tuple[str, torch.Generator]]:
    """Random generators of their own: the loader's (shuffling) and the objective's (candidates)."""
    for name, part in {"loader": train_data, **vars(train_data)}.items():  # a loader may hold others (graph and items)
        if isinstance(part, AbstractDataLoader):
            yield name, part.generator
    objective = _objective(trainer)
    if objective is not None:
        yield "candidates", objective.generator


def random_states() -> dict[str, Any]:
    """The states of all global random generators: Python's, numpy's and torch's."""
    _, key, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(np.asarray(key, dtype=np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what `random_states` gave."""
    random.setstate(states["python"])
    key, *rest = states["numpy"]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
