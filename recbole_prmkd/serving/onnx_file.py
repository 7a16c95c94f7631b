"""A model's scoring as an ONNX file, for programs without torch.

    sequential models   item_id_list [B, L] and item_length [B] -> scores [B, n_items]
    auto-encoders       history [B, n_items], 1 for an item of the history -> scores
    others              user_id [B] -> scores

Ids are the internal ones: of the tokens in the file's metadata, by their place (`user_tokens`, `item_tokens`, JSON).
"""

import importlib.util
import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_prmkd.errors import UserError
from recbole_prmkd.serving.loaded_model import LoadedModel
from recbole_prmkd.serving.scoring import Scorer
from recbole_prmkd.storage.disk import replacing
from recbole_prmkd.students.windows import replaced

_CLOSE = 1e-4  # of the largest score, and at least of 1
_TRIED = 3  # users that the file is compared for


def write_onnx(loaded: LoadedModel, file: Path) -> None:
    """Write the file, after a comparison of its scores with the model's own to 1e-4.

    Raises:
        UserError: packages are missing, or the model has no such form.
    """
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format=onnx needs {' and '.join(missing)}: install the extra, pip install 'recbole_prmkd[onnx]'."
        )
    scorer = Scorer(loaded, loaded.histories, known=True)
    users = np.flatnonzero(loaded.histories.lengths > 0)[:_TRIED]
    own = scorer.scores(users)[:, 1:].cpu().numpy()
    names, inputs, model = _scoring(scorer, users)
    try:
        content = _exported(model, names, inputs)
        found = _run(content, names, inputs)[:, 1 : scorer.n_items]
    except NotImplementedError as error:
        raise _no_onnx(loaded, "it scores pair by pair") from error
    except Exception as error:  # the exporter and the runtime raise a dozen kinds
        words = " ".join(str(error).split())[:200]
        raise _no_onnx(loaded, f"{type(error).__name__}: {words}") from error
    if not np.allclose(found, own, rtol=0, atol=_CLOSE * max(1.0, float(np.abs(own).max()))):
        raise _no_onnx(loaded, f"its scores would differ by {np.abs(found - own).max():.2g}")
    with replacing(file) as part:
        part.write_bytes(_with_tokens(content, loaded))


def _no_onnx(loaded: LoadedModel, reason: str) -> UserError:
    return UserError(
        f"{loaded.name} cannot be exported as ONNX ({reason}): export it with --format=weights, or use --recommend."
    )


class _Scoring(nn.Module):
    """The model's `full_sort_predict` as a function of tensors."""

    def __init__(self, scorer: Scorer, names: list[str]) -> None:
        super().__init__()
        self.model, self.names, self.by_rows, self.n_items = scorer.model, names, scorer.by_rows, scorer.n_items
        self.user = scorer.config["USER_ID_FIELD"]
        self.eval()  # as the model is; the exporter puts the mode back that it finds here

    def forward(self, *inputs: Tensor) -> Tensor:
        """Scores [B, n_items]."""
        columns = dict(zip(self.names, inputs, strict=True))
        if self.by_rows:
            history = inputs[0]
            users = {self.user: history[:, 0].long()}  # not read
            with replaced(self.model, {"get_rating_matrix": lambda user: history}):
                scores = self.model.full_sort_predict(Interaction(users))
        else:
            scores = self.model.full_sort_predict(Interaction(columns))
        return scores.view(-1, self.n_items)  # a length here would become a constant of the file


def _scoring(scorer: Scorer, users: np.ndarray) -> tuple[list[str], tuple[Tensor, ...], _Scoring]:
    """Names of the inputs, the inputs for these users, and the model as a function of them."""
    batch = scorer.interaction(users)
    user = scorer.config["USER_ID_FIELD"]
    if scorer.by_rows:
        row, item = scorer.histories.pairs(users)
        history = torch.zeros(len(users), scorer.n_items)
        history[row, item] = 1.0
        return ["history"], (history.to(scorer.device),), _Scoring(scorer, ["history"])
    names = list(batch.interaction)
    if scorer.sequential:
        names = [name for name in names if name != user] if _needs_no_user(scorer, users) else names
    return names, tuple(batch[name] for name in names), _Scoring(scorer, names)


def _needs_no_user(scorer: Scorer, users: np.ndarray) -> bool:
    columns = dict(scorer.interaction(users).interaction)
    del columns[scorer.config["USER_ID_FIELD"]]
    try:
        with torch.no_grad():
            scorer.model.full_sort_predict(Interaction(columns))
    except KeyError:
        return False
    except NotImplementedError:
        return True
    return True


def _exported(model: _Scoring, names: list[str], inputs: tuple[Tensor, ...]) -> bytes:
    stream = io.BytesIO()
    sizes = {name: {0: "batch"} for name in (*names, "scores")}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            inputs,
            stream,  # type: ignore[arg-type]  # the exporter by tracing writes to a stream too
            input_names=names,
            output_names=["scores"],
            dynamic_axes=sizes,
            dynamo=False,
        )
    return stream.getvalue()


def _run(content: bytes, names: list[str], inputs: tuple[Tensor, ...]) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is said in one sentence
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}
    tensors = {name: tensor.cpu().numpy() for name, tensor in zip(names, inputs, strict=True) if name in wanted}
    doubled = {name: np.concatenate([array, array]) for name, array in tensors.items()}  # a batch of another size
    return session.run(None, doubled)[0][: len(inputs[0])]


def _with_tokens(content: bytes, loaded: LoadedModel) -> bytes:
    import onnx

    model: Any = onnx.load_from_string(content)
    for name in ("user_tokens", "item_tokens"):
        entry = model.metadata_props.add()
        entry.key, entry.value = name, json.dumps(getattr(loaded, name))
    return model.SerializeToString()
