"""Speed of a training epoch of PyGLightGCN against RecBole's own LightGCN: same data, settings and first weights.

python benchmarks/lightgcn.py --dataset=ml-100k

Plain: RecBole's. Both are trained by RecBole's trainer and loader, in turns, and their losses of the first epoch must
agree to 1e-6. "epoch": with loading and sampling of negatives. "steps": loss, gradient and update on batches sampled
beforehand. `ratio` is our time over RecBole's, at most 1. Every other --key=value is a setting of both.
"""

import tempfile
from pathlib import Path
from typing import Any

from measure import Work, compare, options, table
from recbole.config import Config
from recbole.utils import init_seed
from synthetic import First, stock, student

from recbole_prmkd.data.split import Split, load_split
from recbole_prmkd.recbole_host.config import load_config


def main() -> None:
    arguments = options(__doc__, dataset="ml-100k", runs=5)
    config = load_config("PyGLightGCN", arguments.dataset, config_dict={"kd": "none", "show_progress": False})
    split = load_split(config)
    init_seed(config["seed"], True)
    sampled = First([batch.to(config["device"]) for batch in split.train_data])
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for name, loader in (("epoch", split.train_data), ("steps", sampled)):
            plain, ours = (epoch(config, split, loader, model, Path(folder)) for model in ("LightGCN", "PyGLightGCN"))
            agree = {"rtol": 1e-6}
            lines.append(
                compare(
                    *(name, "PyGLightGCN", plain, ours, arguments.runs, config["device"], "steps"),
                    peer="RecBole's LightGCN",
                    cost=True,
                    agree=agree,
                )
            )
    print(table(lines))


def epoch(config: Config, split: Split, loader: Any, model: str, folder: Path) -> Work:
    """One training epoch of this model over the loader, in steps."""
    trainer = stock(config, student(config, split, model), folder)

    def work() -> tuple[int, Any]:
        init_seed(config["seed"], True)  # the same negatives and order for both
        split.train_data.generator.manual_seed(config["seed"])
        return len(loader), trainer._train_epoch(loader, 0)

    return work


if __name__ == "__main__":
    main()
