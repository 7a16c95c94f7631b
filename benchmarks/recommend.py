"""Lists per second of `recommend`, against a bare blocked matrix product with the best K of the same size.

python benchmarks/recommend.py --users=20000 --items=100000

The student is BPR, 64 wide. Plain: user vectors times item vectors, block by block, and torch.topk; nothing is left
out, and nothing is written. Ours: `recbole_prmkd.recommend` into a parquet file, without what each user has seen.
`ratio` is our time over the plain one, wanted at most 1.3. `peak_mb` must not grow with --users.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Work, compare, options, table
from recbole.utils import get_model

from recbole_prmkd import load, recommend
from recbole_prmkd.data.split import load_split
from recbole_prmkd.recbole_host.config import load_config
from recbole_prmkd.serving.kept_data import keep_data, read, with_weights
from recbole_prmkd.serving.scoring import Scorer

EVENTS = 4  # of a user


def main() -> None:
    arguments = options(__doc__, users=4000, items=100_000, width=64, topk=20, runs=3)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(student(Path(folder), arguments))
        scorer = Scorer(loaded, loaded.histories, known=True)
        file = Path(folder) / "lists.parquet"

        def ours() -> tuple[int, Any]:
            recommend(loaded, topk=arguments.topk, output=file)
            return arguments.users, None

        plain = product(loaded.model, scorer.batch, arguments.topk)
        line = compare(
            "recommend", "BPR", plain, ours, arguments.runs, scorer.device, "lists", "product and topk", True
        )
        print(table([line]))


def product(model: Any, size: int, topk: int) -> Work:
    """The best K of the product of all users and items."""

    @torch.no_grad()
    def work() -> tuple[int, Any]:
        users, items = model.user_embedding.weight[1:], model.item_embedding.weight.T
        for block in users.split(size):
            torch.topk(block @ items, topk)
        return len(users), None

    return work


def student(folder: Path, arguments: Any) -> Path:
    """A file of an untrained BPR on made-up interactions in which every user and item occurs."""
    rng = np.random.default_rng(0)
    number = max(arguments.users * EVENTS, arguments.items)
    users = np.arange(number) % arguments.users
    items = rng.permutation(np.arange(number) % arguments.items)
    data = folder / "made-up"
    data.mkdir()
    lines = [f"u{user}\ti{item}\t{step}" for step, (user, item) in enumerate(zip(users, items, strict=True))]
    (data / "made-up.inter").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
    settings = {"data_path": str(folder), "kd": "none", "embedding_size": arguments.width, "state": "ERROR"}
    settings |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "show_progress": False}
    config = load_config("BPR", "made-up", config_dict=settings)
    split = load_split(config, lambda dataset: keep_data(folder / "data.safetensors", config, dataset))
    model = get_model("BPR")(config, split.train_data._dataset)
    with_weights(read(folder / "data.safetensors"), model.state_dict(), folder / "student.safetensors")
    return folder / "student.safetensors"


if __name__ == "__main__":
    main()
