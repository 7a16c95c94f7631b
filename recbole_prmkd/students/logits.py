"""Students' scores on one scale: logits, whatever a RecBole model ranks by."""

from collections.abc import Callable

from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor


def _logit(probability: Tensor) -> Tensor:
    return probability.float().clamp(1e-6, 1 - 1e-6).logit()


# Models whose scores are something else, and what makes logits of them. A context model is named for its `forward`,
# since its `predict` always is a probability.
_MAKE: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("DCNV2", "KD_DAGFM", "DMF", "NeuMF", "NNCF", "DIN", "DIEN", "CDAE", "MCCLK"), _logit),
    **dict.fromkeys(("FISM", "NAIS"), lambda score: _logit(_logit(score))),  # their predict takes the sigmoid twice
    "RepeatNet": lambda distribution: distribution.float().clamp(min=1e-12).log(),
}
_UNLESS = {"CDAE": ("out_activation", "relu"), "MCCLK": ("loss_type", "bpr")}  # with these they are logits already


def as_logits(model: AbstractRecommender, scores: Tensor) -> Tensor:
    """The scores that a model ranks by, as logits or log-probabilities; any shape."""
    name = type(model).__name__
    attribute, value = _UNLESS.get(name, ("", None))
    already = name not in _MAKE or str(getattr(model, attribute, "")).lower() == value
    return scores if already else _MAKE[name](scores)
