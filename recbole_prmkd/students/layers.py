"""Layers that behave otherwise while a student is distilled: dropout and BatchNorm. Our choice.

Only training differs, not the model, its checkpoint or its serving.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn


@contextmanager
def scaled_dropout(model: nn.Module, factor: float) -> Iterator[None]:
    """Inside, the probability of every dropout layer is multiplied by `factor`, in [0, 1].

    RecBole's probabilities suit a student that is trained alone; soft targets already keep it from overfitting.
    Dropout that a model applies without a layer (MultiVAE's of its input, SGL's of the graph) stays as it is.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    before = [layer.p for layer in layers]
    for layer in layers:
        layer.p *= factor
    try:
        yield
    finally:
        for layer, p in zip(layers, before, strict=True):
            layer.p = p


@contextmanager
def running_statistics_kept(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises by the batch as in training, but its running statistics do not move.

    The KD loss needs forward passes of its own, over candidates that no evaluation sees. Counted in, they would move
    NFM's running statistics by up to 9.8 %.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training and module.track_running_stats:
                module.track_running_stats = False
                stack.callback(setattr, module, "track_running_stats", True)
        yield
