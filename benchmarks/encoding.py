"""Encoding speed of each teacher against the straightforward way: same weights, all sequences padded to the maximum.

python benchmarks/encoding.py --dataset=amazon18-scientific --data_path=dataset

Plain: items and histories in the order given, in batches padded to the longest that the settings allow; for
Recformer by transformers' own Longformer layers. Ours: what the package does for the teacher cache. Both on the
same sample, and their outputs must agree to 1e-4. One JSON object a line, then a table.

--rows, --recformer_rows: training examples of the sample, for Recformer, the slow one, fewer; whole users are sampled.
--items: items of the sample. Every other --key=value is a setting, such as --kd_cache_dir, where item texts' vectors
may lie already.
"""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Work, compare, options, table
from recbole.config import Config
from recbole.utils import init_seed

from recbole_prmkd.data.encoder import DEFAULT_ENCODER, encode, load_encoder
from recbole_prmkd.data.examples import Examples
from recbole_prmkd.data.split import load_split
from recbole_prmkd.data.static_encoder import STATIC
from recbole_prmkd.data.text import as_sentence, item_texts
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.storage import encoding_jobs
from recbole_prmkd.teacher_cache.vectors import encode_examples
from recbole_prmkd.teachers import TEACHERS, Teacher
from recbole_prmkd.teachers.data import TeacherData, teacher_config, teacher_data

BATCH = 64
# Items and tokens of a history, and the attention's window, in the paper; the defaults are for a CPU.
PAPER = {
    "kd_recformer_max_item_list_length": 50,
    "kd_recformer_max_token_num": 1024,
    "kd_recformer_attention_window": 64,
}
Encoding = Callable[[], np.ndarray]
PADDED = "padded batches"


def main() -> None:
    teachers = "UniSRec,UniM2Rec,Recformer"
    arguments = options(
        __doc__, dataset="ml-100k", teachers=teachers, rows=10_000, recformer_rows=600, items=1000, runs=3
    )
    lines = []

    def measure(
        what: str, name: str, unit: str, number: int, device: Any, both: tuple[Encoding, Encoding], peer: str = PADDED
    ) -> None:
        plain, ours = (counted(number, encoding) for encoding in both)
        agree = {"atol": 1e-4} if peer == PADDED else None
        lines.append(compare(what, name, plain, ours, arguments.runs, device, unit, peer, agree=agree))

    with tempfile.TemporaryDirectory() as folder:
        settings = {"kd": "mean", "kd_cache_dir": folder, "kd_teacher_dir": folder, "show_progress": False}
        student = load_config("SASRec", arguments.dataset, config_dict=settings)
        device = student["device"]
        init_seed(student["seed"], True)
        data = teacher_data(load_split(student), student["seed"])
        tokens = data.item_tokens[: arguments.items]
        measure("item texts", "UniSRec, UniM2Rec", "items", len(tokens), device, texts(student, tokens))
        if find_spec("wordllama"):
            both = words(student, tokens)
            measure("item texts", "word vectors", "items", len(tokens), device, both, DEFAULT_ENCODER)
        for name in arguments.teachers.split(","):
            if name != "Recformer":
                config, model = made(name, student, data)
                examples = sample(data.train, arguments.rows, config)
                both = histories(model, config, examples)
                measure("histories", name, "sequences", len(examples), device, both)
                continue
            config, model = made(name, student, data)
            number = min(arguments.items, model.n_items - 1)
            measure("items", name, "items", number, device, recformer_items(model, number))
            for title, more, share in (("Recformer", {}, 1), ("Recformer, the paper's budgets", PAPER, 8)):
                student.final_config_dict.update(more)
                config, model = made(name, student, data)
                examples = sample(data.train, arguments.recformer_rows // share, config)
                both = histories(model, config, examples)
                measure("histories", title, "sequences", len(examples), device, both)
    print(table(lines))


def counted(number: int, encoding: Encoding) -> Work:
    """The encoding with the number of what it encodes."""
    return lambda: (number, encoding())


def made(name: str, student: Config, data: TeacherData) -> tuple[Config, Teacher]:
    """An untrained teacher and its configuration."""
    config = teacher_config(name, student)
    return config, TEACHERS[name](config, data.dataset(config, data.fit)).to(config["device"]).eval()


def sample(train: Examples, number: int, config: Config) -> Examples:
    """About `number` examples, all of some random users that have a history no longer than the teacher reads.

    Longer ones are cut at other places by windows (kd_window_context), so that both could not agree.
    """
    fits = (train.lengths > 0) & (train.lengths <= config["MAX_ITEM_LIST_LENGTH"])
    users = torch.unique(train.users[fits])
    share = min(1.0, number / int(fits.sum()))
    chosen = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(0))][
        : max(1, int(len(users) * share))
    ]
    return train.select(torch.nonzero(torch.isin(train.users, chosen) & fits).squeeze(1))


def filled(kind: str, number: int, encoding: Callable[[encoding_jobs.EncodingJob], np.ndarray], **more: Any) -> Any:
    """What an encoding job of its own gives."""
    with (
        tempfile.TemporaryDirectory() as folder,
        encoding_jobs.resumable(Path(folder), kind, {}, number, label=kind, **more) as work,
    ):
        return np.array(encoding(work))


def texts(config: Config, tokens: list[str]) -> tuple[Encoding, Encoding]:
    """Item texts by the sentence encoder, which UniSRec and UniM2Rec share."""
    sentences = [as_sentence(fields) for fields in item_texts(config, tokens)]
    model = load_encoder(config)
    padded_to = {"padding": "max_length", "truncation": True, "max_length": model.max_seq_length}

    @torch.no_grad()
    def plain() -> np.ndarray:
        vectors = []
        for start in range(0, len(sentences), BATCH):
            inputs = model.tokenizer(sentences[start : start + BATCH], return_tensors="pt", **padded_to)
            vectors.append(model(dict(inputs.to(config["device"])))["sentence_embedding"].cpu().numpy())
        return np.concatenate(vectors)

    return plain, lambda: filled("texts", len(sentences), lambda work: encode(sentences, config, work))


def words(config: Config, tokens: list[str]) -> tuple[Encoding, Encoding]:
    """Item texts by the default encoder, and by word vectors."""
    sentences = [as_sentence(fields) for fields in item_texts(config, tokens)]

    def encoding(name: str) -> Encoding:
        config.final_config_dict["kd_text_encoder"] = name
        model = load_encoder(config)
        return lambda: model.encode(sentences, batch_size=BATCH, show_progress_bar=False)

    default, static = encoding(DEFAULT_ENCODER), encoding(STATIC)
    config.final_config_dict["kd_text_encoder"] = DEFAULT_ENCODER
    return default, static


def recformer_items(model: Teacher, number: int) -> tuple[Encoding, Encoding]:
    """Items as Recformer reads them: sequences of one."""
    tokens = model.item_tokens
    items = torch.arange(1, number + 1, device=model.item_embedding.weight.device)[:, None]
    ones = torch.ones_like(items[:, 0])
    width = 1 + int((tokens.start[1:] - tokens.start[:-1]).max())

    def plain() -> np.ndarray:
        parts = zip(items.split(BATCH), ones.split(BATCH), strict=True)
        return unit(torch.cat([padded(model, *part, width) for part in parts]))

    @torch.no_grad()
    def ours() -> np.ndarray:
        return unit(model.encode_histories(items, ones, items))

    return plain, ours


def histories(model: Teacher, config: Config, examples: Examples) -> tuple[Encoding, Encoding]:
    """The vectors of training examples' histories."""
    device, max_length = config["device"], config["MAX_ITEM_LIST_LENGTH"]
    reads_text = hasattr(model, "longformer")
    with torch.no_grad():  # Recformer reads histories as text, without the items' vectors
        items = torch.zeros(1, 1) if reads_text else model.encode_items()

    @torch.no_grad()
    def plain() -> np.ndarray:
        vectors = []
        for part in torch.arange(len(examples)).split(BATCH):
            item_seq, length = (each.to(device) for each in examples.histories(part, max_length))
            if reads_text:
                vectors.append(padded(model, item_seq, length, model.item_tokens.max_tokens))
            else:
                item_seq = torch.nn.functional.pad(item_seq, (0, max_length - item_seq.shape[1]))
                vectors.append(model.encode_histories(item_seq, length, items))
        return unit(torch.cat(vectors))

    def ours() -> np.ndarray:
        given = model, config, examples, items
        return filled("histories", len(examples), lambda work: encode_examples(*given, work), dtype=np.float32)

    return plain, ours


@torch.no_grad()
def padded(model: Teacher, item_seq: torch.Tensor, length: torch.Tensor, width: int) -> torch.Tensor:
    """Recformer's vectors [B, D] by transformers' own layers, every sequence padded to `width` tokens."""
    kept, model.longformer.dense_up_to = model.longformer.dense_up_to, 0
    vectors = model._pooled(model.item_tokens.batch(item_seq, length, width=width))
    model.longformer.dense_up_to = kept
    return vectors


def unit(vectors: torch.Tensor) -> np.ndarray:
    """Unit vectors, as the teacher cache holds them."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


if __name__ == "__main__":
    main()
