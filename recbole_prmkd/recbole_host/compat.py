"""Every repair that RecBole 1.2.0 needs on today's stack. Imported first, before any part of RecBole.

Each repair is guarded (it does nothing where it is not needed), idempotent (importing twice changes
nothing) and stands beside its reason. Nothing in RecBole's behaviour is changed besides.
"""

import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.sparse import dok_matrix

from recbole_prmkd.recbole_host import values

# torch reads this variable at each torch.load call.
_FULL_PICKLE = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"

# RecBole functions that load a checkpoint which the same user's RecBole wrote, or which the user names.
_LOADERS = [
    ("recbole.trainer.trainer", "Trainer", "evaluate"),
    ("recbole.trainer.trainer", "Trainer", "resume_checkpoint"),
    ("recbole.quick_start.quick_start", None, "load_data_and_model"),
    ("recbole.quick_start", None, "load_data_and_model"),
    ("recbole.model.general_recommender.neumf", "NeuMF", "load_pretrain"),
    ("recbole.model.general_recommender.nais", "NAIS", "__init__"),
    ("recbole.model.general_recommender.convncf", "ConvNCF", "__init__"),
    ("recbole.model.general_recommender.ract", "RaCT", "__init__"),
    ("recbole.model.sequential_recommender.s3rec", "S3Rec", "__init__"),
    ("recbole.model.context_aware_recommender.kd_dagfm", "KD_DAGFM", "__init__"),
]


def _numpy_aliases() -> None:
    """numpy 2 removed three names that recbole's Config.compatibility_settings reads.

    That method puts back older ones (np.float, np.int) which models and metrics use; it runs only where a Config is
    made, not where one is unpickled with a checkpoint, so it is called here once.
    """
    for name, value in {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    importlib.import_module("recbole.config").Config.compatibility_settings(None)


def _dok_update() -> None:
    """scipy >= 1.13 removed dok_matrix._update, which LightGCN, NGCF, NCL, GCMC and SpectralCF call."""
    if hasattr(dok_matrix, "_update"):
        return

    def _update(self: dok_matrix, data: Mapping[tuple[int, int], float]) -> None:
        # What the removed method did: no check of each index, which costs LightGCN 10 s on ml-100k.
        self._dict.update(data)

    dok_matrix._update = _update


def _anomaly_mode_off() -> None:
    """recbole's sine.py turns autograd anomaly mode on for everybody at import: 1.8 times the training time.

    Every model look-up imports that file, so it is imported here and the mode switched off once; a user
    who wants the mode can still set it afterwards.
    """
    sine = importlib.import_module("recbole.model.sequential_recommender.sine")
    if not hasattr(sine, "_prmkd_anomaly_off"):
        torch.autograd.set_detect_anomaly(False)
        sine._prmkd_anomaly_off = True  # type: ignore[attr-defined]


@contextmanager
def full_pickle() -> Iterator[None]:
    before = os.environ.get(_FULL_PICKLE)
    os.environ[_FULL_PICKLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FULL_PICKLE]
        else:
            os.environ[_FULL_PICKLE] = before


def _own_checkpoints() -> None:
    """torch >= 2.6 refuses RecBole's checkpoints by default, since they pickle the whole Config.

    An allow-list cannot help (they use pickle protocol 4, which the weights-only reader lacks), so full
    unpickling is allowed for the length of RecBole's own loading calls. This package's own files never
    need it: they are safetensors, npy and JSON.
    """

    def allow(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with full_pickle():
                return function(*args, **kwargs)

        wrapper._prmkd_full_pickle = True  # type: ignore[attr-defined]
        return wrapper

    for module_name, class_name, name in _LOADERS:
        module = importlib.import_module(module_name)
        owner = getattr(module, class_name) if class_name else module
        function = getattr(owner, name)
        if not hasattr(function, "_prmkd_full_pickle"):
            setattr(owner, name, allow(function))


def _no_code_from_settings() -> None:
    """RecBole hands every setting's text to `eval`, so that a line in a config file could run a command."""
    importlib.import_module("recbole.config").Config._convert_config_dict = values.converted


REPAIRS: dict[str, Callable[[], None]] = {
    "numpy: the aliases that numpy 2 removed": _numpy_aliases,
    "scipy: dok_matrix._update": _dok_update,
    "torch: anomaly mode off, which recbole's sine.py turns on": _anomaly_mode_off,
    "torch.load: full unpickling inside RecBole's own loading calls": _own_checkpoints,
    "settings: literals, never code": _no_code_from_settings,
}


def repair() -> None:
    """Apply every repair. Safe to call again."""
    for apply in REPAIRS.values():
        apply()


repair()
