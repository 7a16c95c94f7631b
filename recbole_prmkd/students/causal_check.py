"""Whether a model can share prefixes: the live model is run on windows of histories and must give its own numbers.

For students and teachers alike. A model that cannot is trained on RecBole's padded rows, with the reason in the log.
"""

import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from torch import Tensor, nn

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.students.windows import WindowedModel, WindowLoader, replaced

_PROBED = 64  # examples that a model is run on


def why_not_shared(model: AbstractRecommender, config: Config, examples: Examples) -> str | None:
    """None where shared prefixes give the model's own loss and scores on a few real examples; else the reason.

    The live model is run in evaluation mode on some users' prefixes, two of each at least, as RecBole would feed them
    and as windows: a model that looks at future items, or does not use `gather_indexes`, gives other numbers.
    """
    if not hasattr(model, "gather_indexes"):
        return "it is no sequential model of RecBole"
    if config["loss_type"] != "CE":
        return "its loss_type is not CE"
    max_length = config["MAX_ITEM_LIST_LENGTH"]
    usable = (examples.lengths > 0) & (examples.lengths <= max_length)  # [N]
    usable &= torch.bincount(examples.users[usable], minlength=int(examples.users.max()) + 1)[examples.users] > 1
    if not bool(usable.any()):
        return "no user has two examples with histories, so there is nothing to share"
    by_user = torch.argsort(examples.users, stable=True)
    sample = examples.select(by_user[usable[by_user]][:_PROBED].sort().values)
    item_seq, item_seq_len = sample.histories(torch.arange(len(sample)), max_length)
    prefixes = Interaction(
        {
            config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]: nn.functional.pad(
                item_seq, (0, max_length - item_seq.shape[1])
            ),
            config["ITEM_LIST_LENGTH_FIELD"]: item_seq_len,
            config["USER_ID_FIELD"]: sample.users,
            config["ITEM_ID_FIELD"]: sample.targets,
        }
    ).to(config["device"])
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            loss, scores = model.calculate_loss(prefixes), model.full_sort_predict(prefixes)
            batch = WindowLoader(config, None, sample).batch(torch.arange(len(sample))).to(config["device"])
            with replaced(model, WindowedModel(model, grouped=_each_length).methods()):
                shared_loss, shared_scores = model.calculate_loss(batch), model.full_sort_predict(batch)
            scores, shared_scores = scores.view(len(sample), -1), shared_scores.view(len(sample), -1)
        # The loss alone would not do: with tiny scores it is the same in any case.
        same = torch.allclose(loss, shared_loss, rtol=1e-4, atol=1e-5) and alike(shared_scores, scores)
        return None if same else "its state at a position depends on future items"
    except Exception as error:  # whatever a foreign model raises on windows means that it cannot share
        return f"it does not accept windows ({type(error).__name__})"
    finally:
        model.train(training)


def alike(ours: Tensor, wanted: Tensor) -> bool:
    """Whether scores are the same up to rounding, against their spread: an untrained model's may be very small."""
    tolerance = max(1e-4, 4 * torch.finfo(wanted.dtype).eps)  # half precision under AMP
    ours, wanted = ours.float(), wanted.float()
    spread = float(wanted.std())
    return spread > 0 and torch.allclose(ours, wanted, rtol=tolerance, atol=tolerance * spread)


def _each_length(length: Tensor) -> list[Tensor]:
    """Windows of each length for themselves: without padding at all."""
    return [torch.nonzero(length == size).squeeze(1) for size in length.unique()]
