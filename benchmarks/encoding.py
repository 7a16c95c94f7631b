"""Encoding speed of each teacher against the straightforward way: same weights, all sequences padded to the maximum.

python benchmarks/encoding.py --dataset=amazon18-scientific --data_path=dataset

Plain: items and histories in the order given, in batches padded to the longest that the settings allow; for
Recformer by transformers' own Longformer layers. Ours: what the package does for the knowledge cache. Both on the
same sample, and their outputs must agree to 1e-4. One JSON object a line, then a table.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import device_name, in_turns, report, table
from recbole.config import Config
from recbole.utils import init_seed

from recbole_prmkd.data.encoder import encode, load_encoder
from recbole_prmkd.data.examples import Examples
from recbole_prmkd.data.split import load_split
from recbole_prmkd.data.text import as_sentence, item_texts
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.recbole_host.memory import keep_freed_memory
from recbole_prmkd.teacher_cache import encoding_jobs
from recbole_prmkd.teacher_cache.scores import encode_examples
from recbole_prmkd.teachers import TEACHERS, Teacher
from recbole_prmkd.teachers.data import teacher_config, teacher_data

TOLERANCE = 1e-4
BATCH = 64
# Items and tokens of a history, and the attention's window, in the paper; the defaults are for a CPU.
PAPER = {
    "kd_recformer_max_item_list_length": 50,
    "kd_recformer_max_token_num": 1024,
    "kd_recformer_attention_window": 64,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path", default=None)
    parser.add_argument("--teachers", default="UniSRec,UniM2Rec,Recformer")
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the sample; whole users are drawn")
    parser.add_argument("--recformer_rows", type=int, default=600, help="the same for Recformer, the slow one")
    parser.add_argument("--items", type=int, default=1000, help="items of the sample")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cache_dir", default=None, help="where item texts' vectors may lie already")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does, for both sides of a ratio
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "kd": "mean",
            "kd_cache_dir": arguments.cache_dir or folder,
            "kd_teacher_dir": folder,
            "show_progress": False,
        }
        if arguments.data_path:
            settings["data_path"] = arguments.data_path
        student = load_config("SASRec", arguments.dataset, config_dict=settings)
        init_seed(student["seed"], True)
        data = teacher_data(load_split(student), student["seed"])
        texts(student, data.item_tokens[: arguments.items], arguments.runs)
        for name in arguments.teachers.split(","):
            config = teacher_config(name, student)
            model = TEACHERS[name](config, data.dataset(config, data.fit)).to(config["device"]).eval()
            if name != "Recformer":
                histories(name, model, config, sample(data.train, arguments.rows), arguments.runs)
                continue
            recformer_items(model, arguments.items, arguments.runs)
            rows = sample(data.train, arguments.recformer_rows)
            histories("Recformer", model, config, rows, arguments.runs)
            student.final_config_dict.update(PAPER)
            config = teacher_config("Recformer", student)
            model = TEACHERS["Recformer"](config, data.dataset(config, data.fit)).to(config["device"]).eval()
            rows = sample(data.train, arguments.recformer_rows // 8)
            histories("Recformer, the paper's budgets", model, config, rows, arguments.runs)
    print(table())


def sample(rows: Examples, number: int) -> Examples:
    """All rows of some random users, about `number`, in the order of the data."""
    users = torch.unique(rows.users)
    share = min(1.0, number / len(rows))
    chosen = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(0))][: int(len(users) * share)]
    return rows.select(torch.nonzero(torch.isin(rows.users, chosen) & (rows.lengths > 0)).squeeze(1))


def texts(config: Config, tokens: list[str], runs: int) -> None:
    """Item texts by the sentence encoder, which UniSRec and UniM2Rec share."""
    sentences = [as_sentence(fields) for fields in item_texts(config, tokens)]
    model = load_encoder(config)

    def plain() -> np.ndarray:
        vectors = []
        for start in range(0, len(sentences), BATCH):
            inputs = model.tokenizer(
                sentences[start : start + BATCH],
                padding="max_length",
                truncation=True,
                max_length=model.max_seq_length,
                return_tensors="pt",
            ).to(config["device"])
            with torch.no_grad():
                vectors.append(model(dict(inputs))["sentence_embedding"].cpu().numpy())
        return np.concatenate(vectors)

    def ours() -> np.ndarray:
        with (
            tempfile.TemporaryDirectory() as folder,
            encoding_jobs.resumable(Path(folder), "text", {}, len(sentences), label="texts") as work,
        ):
            return np.array(encode(sentences, config, work))

    agree(plain(), ours())
    timed = in_turns(plain, ours, runs, config["device"])
    report("item texts", "UniSRec, UniM2Rec", *timed, len(sentences), "items", device=device_name(config["device"]))


def recformer_items(model: Teacher, number: int, runs: int) -> None:
    """Items as Recformer reads them: sequences of one."""
    device, tokens = model.item_embedding.weight.device, model.item_tokens
    items = torch.arange(1, min(number, model.n_items - 1) + 1, device=device)[:, None]
    ones = torch.ones_like(items[:, 0])
    width = 1 + int((tokens.start[1:] - tokens.start[:-1]).max())

    def plain() -> np.ndarray:
        parts = zip(items.split(BATCH), ones.split(BATCH), strict=True)
        return unit(torch.cat([padded(model, *part, width) for part in parts]))

    @torch.no_grad()
    def ours() -> np.ndarray:
        return unit(model.encode_histories(items, ones, items))

    agree(plain(), ours())
    report("items", "Recformer", *in_turns(plain, ours, runs, device), len(items), "items", device=device_name(device))


def histories(name: str, model: Teacher, config: Config, rows: Examples, runs: int) -> None:
    """The vectors of training rows' histories."""
    device, max_length = config["device"], config["MAX_ITEM_LIST_LENGTH"]
    with torch.no_grad():  # Recformer reads histories as text, without the items' vectors
        items = torch.zeros(1, 1) if name.startswith("Recformer") else model.encode_items()
    index = torch.arange(len(rows))

    @torch.no_grad()
    def plain() -> np.ndarray:
        vectors = []
        for part in index.split(BATCH):
            item_seq, length = (each.to(device) for each in rows.histories(part, max_length))
            if name.startswith("Recformer"):
                vectors.append(padded(model, item_seq, length, model.item_tokens.max_tokens))
            else:
                item_seq = torch.nn.functional.pad(item_seq, (0, max_length - item_seq.shape[1]))
                vectors.append(model.encode_histories(item_seq, length, items))
        return unit(torch.cat(vectors))

    def ours() -> np.ndarray:
        with (
            tempfile.TemporaryDirectory() as folder,
            encoding_jobs.resumable(Path(folder), "rows", {}, len(rows), label=name, dtype=np.float32) as work,
        ):
            return np.array(encode_examples(model, config, rows, items, work))

    agree(plain(), ours())
    report("histories", name, *in_turns(plain, ours, runs, device), len(rows), "sequences", device=device_name(device))


@torch.no_grad()
def padded(model: Teacher, item_seq: torch.Tensor, length: torch.Tensor, width: int) -> torch.Tensor:
    """Recformer's vectors [B, D] by transformers' own layers, every sequence padded to `width` tokens."""
    kept, model.longformer.dense_up_to = model.longformer.dense_up_to, 0
    vectors = model._pooled(model.item_tokens.batch(item_seq, length, width=width))
    model.longformer.dense_up_to = kept
    return vectors


def unit(vectors: torch.Tensor) -> np.ndarray:
    """Unit vectors, as the knowledge cache holds them."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()


def agree(plain: np.ndarray, ours: np.ndarray) -> None:
    """Stop where the two ways differ."""
    difference = float(np.abs(plain - ours).max())
    if difference > TOLERANCE:
        raise SystemExit(f"the two ways differ by {difference}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
