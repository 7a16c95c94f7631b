"""Items that came after training: their vectors follow from their texts (`--new_items=FILE`). Our choice.

A student that starts from text (`kd_item_init`) keeps the texts' principal components in its folder. The trained
student's item vectors are regressed on them (ridge regression over the items that it knows, with an intercept, the
penalty by generalised cross-validation). What the regression says of a new item's text is that item's vector, scaled
about the mean item so that the same regression gives the known items the spread of their trained vectors. This orders
new items better than the principal components that the student started from (docs/after-training.md has the figures).
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recbole_prmkd.data.encoder import encode, encoder_digest, encoder_folder
from recbole_prmkd.data.lost_lines import first_ten
from recbole_prmkd.data.text import as_sentence, clean, has_ready_vectors, text_fields
from recbole_prmkd.errors import UserError
from recbole_prmkd.results.run_folder import TEXT
from recbole_prmkd.serving.products import Products
from recbole_prmkd.serving.scoring import Scorer
from recbole_prmkd.serving.user_files import read_items
from recbole_prmkd.storage import encoding_jobs, store
from recbole_prmkd.storage.disk import replacing
from recbole_prmkd.students.warm_start import principal_axes

_WIDTH = 128  # components that are kept
_PENALTIES = 10.0 ** np.arange(-5, 1.5, 0.5)  # of the largest variance


@dataclass(frozen=True)
class KeptText:
    """What a run keeps of its items' texts.

    mean: [D] of the text vectors. axes: [D, W]. components: [n_items, W] by internal id. covered: [n_items] bool, items
    with text. about: the encoder with its digest, and the text's fields.
    """

    mean: Tensor
    axes: Tensor
    components: Tensor
    covered: Tensor
    about: Mapping[str, Any]


def keep_text(file: Path, config: Config, vectors: Tensor) -> None:
    """Write the principal components of the items' text vectors into the run's folder.

    Vectors that came with the data set are of an encoder that is not known here, so nothing is kept of them.

    Args:
        vectors: [n_items, D], zero = no text.
    """
    covered = (vectors != 0).any(dim=1)
    if has_ready_vectors(config) or int(covered.sum()) < 2:
        return
    mean = vectors[covered].double().mean(dim=0)
    axes = principal_axes(vectors[covered].double() - mean, _WIDTH)
    tensors = {
        "mean": mean.float(),
        "axes": axes.float(),
        "components": ((vectors.double() - mean) @ axes).half(),
        "covered": covered,
    }
    about = {
        "encoder": str(config["kd_text_encoder"]),
        "digest": encoder_digest(encoder_folder(config["kd_text_encoder"])),
        "fields": text_fields(config),
    }
    with replacing(file) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {"about": json.dumps(about)})


def read_text(folder: Path) -> KeptText:
    """What `keep_text` has written.

    Raises:
        UserError: it is missing or damaged.
    """
    file = folder / TEXT
    if not file.is_file():
        raise UserError(
            f"{folder} has no {TEXT}, so new items have no vectors: train a student that starts from text "
            "(--kd_item_init=text), and name the folder of its run."
        )
    try:
        with safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()["about"])
            tensors = {name: opened.get_tensor(name) for name in ("mean", "axes", "components", "covered")}
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"Cannot read {file} ({error}): copy it again, or train again.") from error
    return KeptText(
        **{name: part.double() if name != "covered" else part for name, part in tensors.items()}, about=about
    )


class WithNewItems:
    """A scorer whose scores go on with those of new items, [B, n_items + M].

    Args:
        users: those that will be scored.
        folder: of the run. file: a table with the column item_id and those of the run's text.
    Raises:
        UserError: the run has kept no text, the encoder is another one, the file cannot be read, or the student's
            scores are no products of a user's and an item's vector.
    """

    def __init__(self, scorer: Scorer, users: np.ndarray, folder: Path, file: Path) -> None:
        text = read_text(folder)
        texts = _new_texts(file, text.about["fields"], scorer.item_tokens)
        self.scorer, self.histories, self.batch = scorer, scorer.histories, scorer.batch
        self.item_tokens = [*scorer.item_tokens, *texts]
        self.n_items = len(self.item_tokens)
        try:
            self.products = Products(scorer, users)
        except UserError as error:
            raise UserError(
                f"The scores of {type(scorer.model).__name__} are no product of a user's and an item's vector, so new "
                "items have none: leave --new_items out, or train a student such as SASRec, GRU4Rec or BPR."
            ) from error
        items = self.products.items
        known = (text.components[text.covered], items.cpu().double()[text.covered])
        components = (_encoded(list(texts.values()), scorer.config, text.about) - text.mean) @ text.axes
        vectors, explained = ridge(*known, components)
        self.vectors = vectors.to(items)  # [M, D]
        getLogger().warning(f"Texts explain {explained:.0%} of the variance of the trained item vectors.")

    def scores(self, users: np.ndarray) -> Tensor:
        """As the scorer's own, with the new items at the end."""
        scores, vectors = self.products.scored(users)
        return torch.cat([scores, (vectors @ self.vectors.T).to(scores)], dim=1)


def ridge(inputs: Tensor, outputs: Tensor, new: Tensor) -> tuple[Tensor, float]:
    """Predictions for new inputs from a ridge regression with an intercept, and the share of the variance explained.

    One penalty for all outputs: the one with the least generalised cross-validation error (Golub, Heath and Wahba,
    1979), of a fixed grid. Predictions are scaled about the mean output so that those of the known inputs have the
    outputs' standard deviation.

    Args:
        inputs, outputs: [N, W] and [N, D], known. new: [M, W].
    Returns:
        [M, D], and a share from 0 to 1.
    """
    mean, centre = inputs.mean(dim=0), outputs.mean(dim=0)
    variance, axes = torch.linalg.eigh((inputs - mean).T @ (inputs - mean))
    variance = variance.clamp(min=1e-12 * float(variance[-1]))
    seen = axes.T @ (inputs - mean).T @ (outputs - centre)  # [W, D]
    strength = seen.square().sum(dim=1) / variance  # [W] of the outputs' squares that each axis explains
    total = (outputs - centre).square().sum()
    shrunk = [variance / (variance + penalty) for penalty in _PENALTIES * float(variance[-1])]  # [W] each
    left = [total - ((2 * kept - kept**2) * strength).sum() for kept in shrunk]
    freedom = [(len(inputs) - 1 - kept.sum()).clamp(min=1) for kept in shrunk]
    best = int(torch.stack([rest / number**2 for rest, number in zip(left, freedom, strict=True)]).argmin())
    kept = shrunk[best]
    spread = (total / (kept**2 * strength).sum().clamp(min=1e-12)).sqrt()
    weights = axes @ (seen * (kept / variance)[:, None])  # [W, D]
    return (new - mean) @ weights * spread + centre, float(1 - left[best] / total.clamp(min=1e-12))


def _new_texts(file: Path, fields: list[str], known: list[str]) -> dict[str, str]:
    """Texts of the new items by token; says how many items are known, or have no text."""
    table = read_items(file, fields)
    table = table[(table["item_id"] != "") & ~table["item_id"].duplicated()]  # an item's first line counts
    old = table["item_id"].isin(known[1:])
    texts = {
        token: as_sentence(dict(zip(fields, map(clean, values), strict=True)))
        for token, *values in table.loc[~old, ["item_id", *fields]].itertuples(index=False)
    }
    empty = [token for token, text in texts.items() if not text]
    found = {token: text for token, text in texts.items() if text}
    if empty:
        getLogger().warning(f"{len(empty)} new items without text left out: {first_ten(empty)}.")
    if not found:
        raise UserError(f"--new_items={file} has no new item with text ({int(old.sum())} are known): leave it out.")
    getLogger().warning(f"{len(found)} new items from their texts; {int(old.sum())} known ones are left as they are.")
    return found


def _encoded(texts: list[str], config: Config, about: Mapping[str, Any]) -> Tensor:
    """Vectors of the texts by the run's encoder, [M, D] double."""
    if encoder_digest(encoder_folder(config["kd_text_encoder"])) != about["digest"]:
        raise UserError(
            f"The encoder {config['kd_text_encoder']} is another one than in training: put the files of that one there."
        )
    with (
        tempfile.TemporaryDirectory() as folder,
        encoding_jobs.resumable(Path(folder), "text", {}, len(texts), label="New items") as work,
    ):
        return torch.from_numpy(np.array(encode(texts, config, work))).double()


def digest_of(scorer: Any) -> dict[str, str]:
    """What the lists depend on beside the model, for the file that goes on after a kill."""
    if not isinstance(scorer, WithNewItems):
        return {}
    return {"new items": store.digest([*scorer.item_tokens, scorer.vectors.cpu()])}
