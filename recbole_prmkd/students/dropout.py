"""Less dropout for a student that is distilled: soft targets keep it from fitting its rows by heart already.

RecBole's dropout probabilities suit a student that is trained alone. Our choice; only training differs, not the model,
its checkpoint or its serving.
"""

from torch import nn


def scale_dropout(model: nn.Module, factor: float) -> None:
    """Multiply the probability of every dropout layer of the model by `factor`, in [0, 1]; in place.

    Dropout that a model does without a layer (MultiVAE's of its input, SGL's of the graph) stays as it is.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p *= factor
