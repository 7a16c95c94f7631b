"""How strong the KD loss is for a student, unless the user says otherwise: our choice, by cost and quality.

A KD loss is cheap where the scores are a by-product of the student's own loss. Where they are not, each example of a
sequential student costs a forward pass. Students without order have steps of a few milliseconds (graph students have
longer ones). Their KD loss takes about the same time for 10 examples as for 100, except in pairs, where time grows
with the examples. The figures are in `docs/costs.md`.
"""

from dataclasses import dataclass

from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType
from torch import nn

from recbole_prmkd.data.examples import EXAMPLE
from recbole_prmkd.students.traits import Traits


@dataclass(frozen=True)
class StudentDefaults:
    """What `auto` means for this student, and the factors that make its KD loss one of the size of its own loss.

    Attributes:
        rows, every: `kd_max_rows` and `kd_every` where they are `auto`; rows None: all examples of a batch.
        temperature: factor on `kd_temperature`, which makes the scores logits of a softmax.
        weight: factor on `kd_weight`.
    """

    rows: int | None = None
    every: int = 1
    temperature: float = 1.0
    weight: float = 1.0


def student_defaults(step: str, loss: str, traits: Traits, sequential: bool, shares_forward: bool) -> StudentDefaults:
    """The defaults of a student.

    Args:
        step: what `own_step` says. loss: what `own_loss` says.
        sequential: whether each example has its own history in the batch.
        shares_forward: whether each example's scores come from the loss's own forward pass.
    """
    return StudentDefaults(*_amount(step, traits, sequential, shares_forward), *_scale(loss, traits))


def own_step(model: AbstractRecommender, traits: Traits, pairs: bool) -> str:
    """`pairs`, `recurrent`, `graph` or `plain`: what decides how much a KD loss costs beside the model's own step."""
    if pairs:
        return "pairs"
    if traits.step is not None:
        return traits.step
    if hasattr(model, "restore_user_e"):  # a model that passes a whole graph in each step keeps it for evaluation
        return "graph"
    return "recurrent" if any(isinstance(module, nn.RNNBase) for module in model.modules()) else "plain"


def own_loss(config: Config, interaction: Interaction, traits: Traits) -> str:
    """`pairwise`, `pointwise` or `full-softmax`: what the student's own loss compares.

    RecBole calls auto-encoders and SINE pairwise too. The first learn from whole users, the second from all items, so
    the batch decides: a loss on samples has labels or sampled negatives in it.
    """
    if traits.loss is not None:
        return traits.loss
    sampled = {config["LABEL_FIELD"], config["NEG_PREFIX"] + config["ITEM_ID_FIELD"]} & {*interaction.columns}
    if not (EXAMPLE in interaction and sampled) or config["loss_type"] in ("CE", "NLL"):
        return "full-softmax"
    return "pairwise" if config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE else "pointwise"


def _amount(step: str, traits: Traits, sequential: bool, shares_forward: bool) -> tuple[int | None, int]:
    """Examples of a batch, and the period of the KD loss in batches."""
    if sequential:
        if not shares_forward:
            return 256, 1
        # GRU4Rec's own step takes little more time than a KD loss on all of its examples.
        return (512, 2) if step == "recurrent" else (None, 1)
    if step == "pairs":
        return 16, 4
    return (256, 4) if step == "graph" else (64, 16)


def _scale(loss: str, traits: Traits) -> tuple[float, float]:
    """Factors on temperature and weight.

    A pairwise loss is content with differences far below those of a softmax. To reach a soft target from there the
    student would have to grow its vectors many times over, and would overfit its training examples in doing so.
    Pairwise and pointwise losses are also smaller than a full softmax.
    """
    if loss == "full-softmax":
        return 1.0, 1.0
    if loss == "pointwise":
        return 0.1 if traits.scores == "cosines" else 1.0, 0.01
    return 0.1, 1.0 if traits.summed_loss else 0.1
