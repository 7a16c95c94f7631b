"""Reads other people's checkpoints without running their code.

Three kinds of file: safetensors; torch files that hold tensors only (`.bin`, `.pth`, read by torch's own
weights-only reader); and the released UniSRec pickles, which also hold a configuration object of a class that
is not installed here. For those, this file has a reader of its own with a list of every name that they mention:
data become data, classes become empty stubs, any other name ends the reading. Nothing is imported, and all
that a pickle can call is what makes a dictionary, a tensor or a stub.
"""

import pickle
import sys
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recbole_prmkd.errors import UserError
from recbole_prmkd.teachers.recformer_text import TOKEN_TYPES

if TYPE_CHECKING:
    from transformers import LongformerConfig

# Encoders with BERT's layers, and whether their position table starts with rows for padding.
_LEADING_POSITIONS = {"bert": False, "roberta": True, "xlm-roberta": True, "longformer": True}
# Kinds of storage that a tensor's numbers may lie in.
_STORAGES = {
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "BoolStorage"): torch.bool,
}
# What the configuration object of a UniSRec checkpoint is made of; none of it is needed.
_STUBS = {
    ("config", "Config"),
    ("recbole.config.configurator", "Config"),
    ("recbole.utils.enum_type", "ModelType"),
    ("recbole.utils.enum_type", "InputType"),
    ("recbole.utils.enum_type", "EvaluatorType"),
    ("torch", "device"),
    ("unisrec", "UniSRec"),
    ("yaml.loader", "FullLoader"),
}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU; those under `state_dict` where the file has that key.

    Raises:
        UserError: no such file, not one of the three kinds, or a pickle with a name that is not on the list.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"Cannot read the checkpoint {path} as safetensors: {error}.") from error
    content = _torch_file(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    named = content.items() if isinstance(content, dict) else ()
    tensors = {name: value for name, value in named if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors by name: name a file with a state dict.")
    return tensors


def recformer_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a Recformer or Longformer file: those of the encoder, and those of the language model's head.

    Any of the authors' prefixes is taken off; poolers and item tables are left out, and so is `position_ids`, which is
    no weight. A Longformer's one row of token types is repeated for all four.

    Raises:
        UserError: as `read_checkpoint`.
    """
    encoder, head = {}, {}
    for name, tensor in read_checkpoint(path).items():
        name = name.removeprefix("_forward_module.model.").removeprefix("longformer.")
        if name.startswith("lm_head."):
            head[name.removeprefix("lm_head.")] = tensor
        elif name.startswith(("embeddings.", "encoder.")) and name != "embeddings.position_ids":
            encoder[name] = tensor
    types = "embeddings.token_type_embeddings.weight"
    if types in encoder and len(encoder[types]) == 1:
        encoder[types] = encoder[types].repeat(TOKEN_TYPES, 1)
    return encoder, head


def read_encoder(
    folder: Path, window: int, max_tokens: int, item_positions: int
) -> tuple[str, "LongformerConfig", dict[str, Tensor]]:
    """An encoder's kind, and its sizes and weights as a `RecformerModel` has them.

    A Longformer's weights are taken by name. Of other BERT-type encoders the query, key and value projections serve
    for <s> (the global ones) too, so that on texts shorter than half a window the output is the encoder's own.
    Positions beyond the encoder's are a repetition of its own, as Longformer was made from RoBERTa.

    Raises:
        UserError: no such encoder, or one of another kind.
    """
    from transformers import AutoModel, LongformerConfig, logging  # takes seconds to import

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else a table of the weights that are not needed
    try:
        source = AutoModel.from_pretrained(str(folder), add_pooling_layer=False, dtype=torch.float32)
        kind = source.config.model_type
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"Recformer cannot start from {folder}: {str(error).splitlines()[0]}") from error
    finally:
        logging.set_verbosity(verbosity)
    if kind not in _LEADING_POSITIONS:
        raise UserError(
            f"Recformer cannot start from {folder}, a {kind} model: name a {', '.join(_LEADING_POSITIONS)} "
            "encoder with --kd_text_encoder."
        )
    given = source.config
    weights = {name: tensor for name, tensor in source.state_dict().items() if not name.endswith("_ids")}
    for name in [name for name in weights if kind != "longformer" and ".attention.self." in name]:
        layer, projection, part = name.rsplit(".", 2)
        weights[f"{layer}.{projection}_global.{part}"] = weights[name]
    pad = int(given.pad_token_id or 0)
    positions = weights["embeddings.position_embeddings.weight"]  # [P, D]
    if not _LEADING_POSITIONS[kind]:
        positions = torch.cat([positions.new_zeros(pad + 1, positions.shape[1]), positions])
    missing = max_tokens + pad + 1 - len(positions)
    if missing > 0:
        own = positions[pad + 1 :]
        positions = torch.cat([positions, own.repeat(-(-missing // len(own)), 1)[:missing]])
    embeddings = {
        "position_ids": torch.arange(len(positions))[None],
        "position_embeddings.weight": positions,
        "token_type_embeddings.weight": weights["embeddings.token_type_embeddings.weight"][:1].repeat(TOKEN_TYPES, 1),
        "item_position_embeddings.weight": positions.new_zeros(item_positions, positions.shape[1]),
    }
    weights.update({f"embeddings.{name}": tensor for name, tensor in embeddings.items()})
    config = LongformerConfig(
        attention_window=[window] * given.num_hidden_layers,
        vocab_size=given.vocab_size,
        hidden_size=given.hidden_size,
        num_hidden_layers=given.num_hidden_layers,
        num_attention_heads=given.num_attention_heads,
        intermediate_size=given.intermediate_size,
        hidden_act=given.hidden_act,
        hidden_dropout_prob=given.hidden_dropout_prob,
        attention_probs_dropout_prob=given.attention_probs_dropout_prob,
        max_position_embeddings=len(positions),
        layer_norm_eps=given.layer_norm_eps,
        pad_token_id=pad,
    )
    return kind, config, weights


def _torch_file(path: Path) -> Any:
    try:
        # Said outright, since an environment variable can turn off a default.
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} cannot be read safely: save it as safetensors.") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"Cannot read the checkpoint {path}: {_first_line(error)}.") from error
    return _unisrec_pickle(path)


def _unisrec_pickle(path: Path) -> Any:
    """The content of a torch zip file by the list of names above."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise UserError(f"{path} is no torch file: name a checkpoint.")
            return _ListedUnpickler(archive, pickles[0], path).load()
    except UserError:
        raise
    except Exception as error:  # a damaged or a forged pickle can raise anything
        raise UserError(f"{path} is damaged ({type(error).__name__}: {_first_line(error)}).") from error


class _ListedUnpickler(pickle.Unpickler):
    """Reads the listed names and no other; makes tensors itself from the archive's bytes."""

    def __init__(self, archive: zipfile.ZipFile, name: str, path: Path) -> None:
        super().__init__(BytesIO(archive.read(name)))
        self.archive, self.path = archive, path
        self.folder = name.rpartition("/")[0]
        self.storages: dict[str, Tensor] = {}
        order = f"{self.folder}/byteorder"
        if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
            raise UserError(f"{path} was written on a machine of another byte order: save it as safetensors.")

    def find_class(self, module: str, name: str) -> Any:
        pair = (module, name)
        if pair in _STORAGES:
            return _STORAGES[pair]
        if pair in _STUBS:
            # Made anew at each mention: a pickle can set attributes, and they must not outlive it.
            return type(name, (_Stub,), {})
        if pair == ("collections", "OrderedDict"):
            return OrderedDict
        if pair == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        raise UserError(
            f"{self.path} is rejected because it refers to {module}.{name}, which is on no list of harmless names: "
            "save its state dict as safetensors if you trust it."
        )

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of one storage, [N]; pid: ("storage", kind, key, device, N)."""
        _, dtype, key, _, _ = pid
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.folder}/data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]

    def _tensor(self, storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
        # as_strided refuses to leave the storage; the copy frees a tensor from its neighbours.
        return torch.as_strided(storage, size, stride, offset).clone()


class _Stub:
    """Stands for an object that is not needed: takes any arguments, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
