"""What must be known of a student's class: one table, resolved through base classes.

A user's `class MyNeuMF(NeuMF)` has NeuMF's traits. A model of one's own states them as a class attribute:

    class MyModel(GeneralRecommender):
        kd_traits = Traits(scores="probabilities", loss="pointwise")

A model with neither is probed on its first batch (`students.probe`). This table is the only list of model names.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from recbole_prmkd.errors import UserError


@dataclass(frozen=True)
class Traits:
    """How a model scores, learns and is trained.

    Attributes:
        scores: a key of `LOGITS`: what the model ranks by. None: probed on the first batch.
        logits_if: (attribute, value) with which the scores are logits all the same.
        in_pairs: candidates must be scored pair by pair, since `full_sort_predict` runs user by user or holds
            examples x items x width numbers at once.
        loss: `full-softmax`, `pairwise` or `pointwise`. None: read from the batch and the configuration.
        summed_loss: the loss is the sum over the batch, not its mean.
        step: `recurrent` or `graph`, where the model's own step is short or passes a whole graph; `plain` otherwise.
            None: read from the model's layers.
        training: `gradient`, `stages` (RecBole trains it in stages, the last one ranks) or `none`.
        package: an optional package that the model imports.
    """

    scores: str | None = "logits"
    logits_if: tuple[str, str] | None = None
    in_pairs: bool = False
    loss: str | None = None
    summed_loss: bool = False
    step: str | None = None
    training: str = "gradient"
    package: str | None = None


_UNTRAINED = Traits(training="none")
# RecBole's models that differ from the default. A context model is named for its `forward`, since its `predict`
# always is a probability.
TRAITS: dict[str, Traits] = {
    **dict.fromkeys(("DCNV2", "KD_DAGFM", "DMF", "NeuMF", "NNCF", "DIN", "DIEN"), Traits(scores="probabilities")),
    **dict.fromkeys(("FISM", "NAIS"), Traits(scores="sigmoid applied twice", in_pairs=True)),
    **dict.fromkeys(("TransRec", "GCMC", "KGCN", "KGNNLS", "RippleNet"), Traits(in_pairs=True)),
    "CDAE": Traits(scores="probabilities", logits_if=("out_activation", "relu")),
    "MCCLK": Traits(scores="probabilities", logits_if=("loss_type", "bpr"), package="torch_scatter"),
    "RepeatNet": Traits(scores="distribution"),
    "DSSM": Traits(scores="cosines"),
    **dict.fromkeys(("SGL", "ConvNCF"), Traits(summed_loss=True)),
    **dict.fromkeys(("S3Rec", "RaCT"), Traits(training="stages")),
    "NCL": Traits(package="faiss"),
    "KGAT": Traits(package="dgl"),
    "KGIN": Traits(package="torch_scatter"),
    **dict.fromkeys(("Pop", "Random", "ItemKNN", "EASE", "SLIMElastic", "ADMMSLIM", "NCEPLRec"), _UNTRAINED),
    **dict.fromkeys(("XGBoost", "LightGBM"), _UNTRAINED),
}


def _logit(probability: Tensor) -> Tensor:
    return probability.float().clamp(1e-6, 1 - 1e-6).logit()


# What makes logits (or log-probabilities) of a model's scores, any shape; None: they are taken as they are.
LOGITS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "logits": None,
    "cosines": None,  # on a scale of their own: `students.defaults` gives them another temperature
    "probabilities": _logit,
    "sigmoid applied twice": lambda score: _logit(_logit(score)),
    "distribution": lambda distribution: distribution.float().clamp(min=1e-12).log(),
}


def traits_of(model_class: type) -> tuple[Traits, str]:
    """The traits of a model class, and where they come from: a class's name, or `probed`.

    The nearest base counts: one with a `kd_traits` attribute of its own, or a model of RecBole or of this package.

    Raises:
        UserError: `kd_traits` is no `Traits`, or holds a word that it does not know.
    """
    for base in model_class.__mro__:
        if "kd_traits" in vars(base):
            return _checked(vars(base)["kd_traits"], base.__name__), base.__name__
        if base.__module__.startswith(("recbole.model.", "recbole_prmkd.")) and not _is_abstract(base):
            return TRAITS.get(base.__name__, Traits()), base.__name__
    return Traits(scores=None), "probed"


def _checked(traits: object, name: str) -> Traits:
    if not isinstance(traits, Traits):
        raise UserError(f"{name}.kd_traits is {traits!r}: write Traits(...) of recbole_prmkd.students.traits.")
    allowed = {
        "scores": LOGITS,
        "loss": ("full-softmax", "pairwise", "pointwise"),
        "step": ("recurrent", "graph", "plain"),
        "training": ("gradient", "stages", "none"),
    }
    for key, words in allowed.items():
        value = getattr(traits, key)
        if value not in words and (value is not None or key == "training"):
            raise UserError(f"{name}.kd_traits has {key}={value!r}: use one of {', '.join(words)}.")
    return traits


def to_logits(model: nn.Module, traits: Traits) -> Callable[[Tensor], Tensor] | None:
    """What makes logits of the model's scores; None where they are logits, or not yet probed."""
    if traits.scores is None:
        return None
    if traits.logits_if is not None:
        attribute, value = traits.logits_if
        if str(getattr(model, attribute, "")).lower() == value:
            return None
    return LOGITS[traits.scores]


def _is_abstract(base: type) -> bool:
    return base.__module__ in ("recbole.model.abstract_recommender", "recbole.model.layers")
