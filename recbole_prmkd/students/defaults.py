"""What a kd_loss is by the kind of student, unless the user says otherwise: our choice, by cost and quality.

A kd_loss is cheap where scores are a by-product of the student's own loss; else each row of a sequential student, with
its own history, costs a pass, and others have steps of few milliseconds, but for those that pass a graph. A kd_loss
costs these about the same for any few rows; with pairs each row counts. The figures are in `docs/costs.md`.
"""

from dataclasses import dataclass

from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType, ModelType
from torch import nn

from recbole_prmkd.data.examples import EXAMPLE

_SUMMED = {"SGL", "ConvNCF"}  # their loss on pairs is the batch's sum, and far larger than a mean
_COSINES = {"DSSM"}  # its scores are cosines, of which a softmax at temperature 1 is nearly flat


@dataclass(frozen=True)
class StudentDefaults:
    """rows and every: `kd_max_rows` and `kd_every` where they are auto; None: all rows.

    temperature: times `kd_temperature`, makes the scores logits of a softmax. weight: times `kd_weight`, makes a
    kd_loss one of the size of the student's own loss.
    """

    rows: int | None = None
    every: int = 1
    temperature: float = 1.0
    weight: float = 1.0


def student_defaults(
    model: AbstractRecommender, config: Config, interaction: Interaction, scores_pairs: bool, shares_pass: bool
) -> StudentDefaults:
    """What is usual for this student.

    Args:
        interaction: a batch.
        scores_pairs: whether candidates are scored pair by pair.
        shares_pass: whether each row's scores come from the loss's own forward pass.
    """
    return StudentDefaults(*_share(model, config, scores_pairs, shares_pass), *_scale(model, config, interaction))


def _share(model: AbstractRecommender, config: Config, scores_pairs: bool, shares_pass: bool) -> tuple[int | None, int]:
    """Rows of a batch, and in how many batches once."""
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
        if not shares_pass:
            return 256, 1
        # GRU4Rec's own step takes little more time than a kd_loss on all of its rows.
        recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
        return (512, 2) if recurrent else (None, 1)
    if scores_pairs:
        return 16, 4
    # A student that passes a whole graph in each step keeps what came of it for evaluation.
    return (256, 4) if hasattr(model, "restore_user_e") else (64, 16)


def _scale(model: AbstractRecommender, config: Config, interaction: Interaction) -> tuple[float, float]:
    """Temperature and weight.

    A loss on pairs is content with differences far below those of a softmax: to reach a soft target from there the
    student would have to grow its vectors many times over, and fits its training rows in doing so. Losses on pairs, and
    on single items, are also smaller than one on all items.
    """
    if not _learns_from_samples(config, interaction):
        return 1.0, 1.0
    if config["MODEL_INPUT_TYPE"] != InputType.PAIRWISE:
        return 0.1 if type(model).__name__ in _COSINES else 1.0, 0.01
    return 0.1, 1.0 if type(model).__name__ in _SUMMED else 0.1


def _learns_from_samples(config: Config, interaction: Interaction) -> bool:
    """Whether the loss compares a row's item with drawn ones, or judges it alone, not with all items.

    RecBole calls auto-encoders and SINE pairwise too: the first learn from whole users, the second from all items.
    """
    sampled = {config["LABEL_FIELD"], config["NEG_PREFIX"] + config["ITEM_ID_FIELD"]} & {*interaction.columns}
    return EXAMPLE in interaction and bool(sampled) and config["loss_type"] not in ("CE", "NLL")
