"""Encoders without a transformer: a text's vector is the mean of its words' vectors.

They are a hundred times as fast and know less, so they serve first tries and very large catalogues.
`kd_text_encoder: static` is WordLlama's table of 32,000 word pieces, 256 wide, which lies in the package `wordllama`.
sentence-transformers' `StaticEmbedding` does the arithmetic; folders that name this module (model2vec's) work alike.
"""

from collections import Counter
from importlib.util import find_spec
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_prmkd.errors import UserError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

STATIC = "static"
POOLING = "mean, Normalize"
_TABLE = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"


def wordllama_folder() -> Path:
    """Where the installed package lies; it is not imported, since only two of its files are read.

    Raises:
        UserError: it is not installed, or lacks a file.
    """
    found = find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise UserError("kd_text_encoder=static needs word vectors: pip install 'wordllama>=0.4', or name an encoder.")
    folder = Path(found.submodule_search_locations[0])
    for name in (_TABLE, _TOKENIZER):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}: pip install 'wordllama>=0.4', or name another --kd_text_encoder.")
    return folder


def is_wordllama(folder: Path) -> bool:
    """Whether this is the folder of `kd_text_encoder: static`."""
    return (folder / _TABLE).is_file() and (folder / _TOKENIZER).is_file()


def load_wordllama(folder: Path, device: str) -> "SentenceTransformer":
    """WordLlama's table as a sentence-transformers model; vectors have length 1.

    Raises:
        UserError: a file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, StaticEmbedding
    from tokenizers import Tokenizer

    try:
        (table,) = load_file(folder / _TABLE).values()
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"Cannot read the word vectors in {folder} ({error}): install wordllama again.") from error
    tokenizer.no_truncation()
    words = StaticEmbedding(tokenizer, embedding_weights=table.float())
    return SentenceTransformer(modules=[words, Normalize()], device=device)


def is_static(model: "SentenceTransformer") -> bool:
    """Whether the encoder averages word vectors."""
    from sentence_transformers.models import StaticEmbedding

    return isinstance(model[0], StaticEmbedding)


def as_transformers(tokenizer: Any) -> Any:
    """A static encoder's tokenizer with the interface of a transformer's: the same tokens, none cut."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_str(tokenizer.to_str())
    own.no_truncation()
    special = [str(token.content) for token in own.get_added_tokens_decoder().values() if token.special]
    return PreTrainedTokenizerFast(tokenizer_object=own, additional_special_tokens=special)


def shares(ids: list[int]) -> tuple[tuple[int, int], ...]:
    """What a mean over tokens keeps of a text: each token and its share, in no order."""
    count = Counter(ids)
    divisor = gcd(*count.values()) or 1
    return tuple(sorted((token, number // divisor) for token, number in count.items()))
