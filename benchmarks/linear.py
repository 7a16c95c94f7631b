"""Time and memory of the teacher Linear as the catalogue grows: to choose its settings, to fit it, and its scores.

python benchmarks/linear.py --items=100000 --interactions=1000000
python benchmarks/linear.py --items=1000000 --interactions=10000000 --parts=1 --scored=100000
python benchmarks/linear.py --inter=data/amazon14-beauty/amazon14-beauty.inter

--inter: a RecBole file of interactions, without the two newest of each user. Otherwise the data are synthetic: as many
users as items, a long tail of both. An item's popularity falls as its rank to the power of -0.7, the length of a
history is geometric, and half of all steps go to one of the eight next items.

--parts, --scored: of the five parts of the users and of their training examples, how many are scored (0: all); the last
line says what all of them would take. One JSON object a line; `peak_mb` is the process's highest resident memory up to
then, `cpu_seconds` those of all threads.
"""

import json
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import options
from scipy import sparse

from recbole_prmkd.data.examples import Examples
from recbole_prmkd.recbole_host.memory import peak_memory_mb
from recbole_prmkd.teacher_cache.stored_scores import width
from recbole_prmkd.teachers import closed_form
from recbole_prmkd.teachers.linear import Linear
from recbole_prmkd.teachers.linear_choice import choose, fitted

FIELDS = {"USER_ID": "user_id", "ITEM_ID": "item_id", "ITEM_LIST_LENGTH": "item_length", "NEG_PREFIX": "neg_"}
STORED = 256


def main() -> None:
    arguments = options(__doc__, inter=None, items=100_000, interactions=1_000_000, parts=0, scored=0)
    device, started, cpu = torch.device("cpu"), time.perf_counter(), time.process_time()

    def line(what: str, **more: Any) -> float:
        nonlocal started, cpu
        seconds = time.perf_counter() - started
        took = {"seconds": round(seconds, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        print(json.dumps({"what": what, **took, "peak_mb": peak_memory_mb(device), **more}), flush=True)
        started, cpu = time.perf_counter(), time.process_time()
        return seconds

    if arguments.inter:
        examples = examples_of(arguments.inter)
    else:
        examples = random_examples(arguments.items, arguments.interactions)
    n_items = max(arguments.items * (not arguments.inter), int(examples.items.max())) + 1
    line("data", examples=len(examples), items=n_items - 1, users=int(examples.users.max()))
    model = teacher(n_items)
    fold = model._fold_of_examples(examples, examples)
    choice = choose(examples, fold, n_items, model.newest)
    line("settings", choice=str(choice))
    weights = fitted(examples, n_items, choice)
    closed_form.largest(weights, model.columns.shape[1])
    line("fit", weights=weights.nnz if sparse.issparse(weights) else weights.size)
    del weights
    model.choice.copy_(torch.tensor(tuple(vars(choice).values()), dtype=torch.float64))
    model.known[examples.targets], model.known[examples.items] = True, True
    stored = width(STORED, len(examples))
    parts, scored, each = arguments.parts or model.folds, 0, arguments.scored or len(examples)
    fitting = scoring = 0.0
    for part in range(parts):
        others = examples.select(torch.nonzero(fold != part).squeeze(1))
        weights = fitted(others, n_items, choice)
        fitting += line("fit without a part of the users")
        numbers = torch.nonzero(fold == part).squeeze(1)
        numbers = numbers[torch.linspace(0, len(numbers) - 1, min(each, len(numbers))).long()]
        for _ in model.scores_of(examples, numbers, weights, stored):
            pass
        scored += len(numbers)
        scoring += line("scores", examples=len(numbers))
    whole = fitting / parts * model.folds + scoring / scored * len(examples)
    print(json.dumps({"what": "all scores", "seconds": round(whole), "stored_gb": len(examples) * stored * 6 / 1e9}))


def teacher(n_items: int) -> Linear:
    """An unfitted Linear with its default settings."""
    config = {f"{name}_FIELD": field for name, field in FIELDS.items()} | {"NEG_PREFIX": "neg_", "device": "cpu"}
    config |= {"LIST_SUFFIX": "_list", "ITEM_LIST_LENGTH_FIELD": "item_length", "MAX_ITEM_LIST_LENGTH": 50}
    config |= {"train_stage": None, "temperature": None, "folds": 5, "seed": 2020}
    return Linear(config, SimpleNamespace(num=lambda field: n_items))


def examples_of(file: str) -> Examples:
    """All training examples with a history of a RecBole file, without the two newest interactions of each user."""
    table = pd.read_csv(file, sep="\t").rename(columns=lambda name: name.split(":")[0])
    table = table.sort_values(["user_id", "timestamp"], kind="stable")
    table = table[table.groupby("user_id").cumcount(ascending=False) >= 2]
    lengths = table.groupby("user_id", sort=False).size().to_numpy()
    return every_example(torch.from_numpy(pd.factorize(table.item_id)[0] + 1), lengths)


def random_examples(items: int, interactions: int) -> Examples:
    """All training examples with a history of as many users as items."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(2, rng.geometric(items / interactions, items))
    popularity = np.cumsum(np.arange(1, items + 1) ** -0.7)
    item = np.minimum(np.searchsorted(popularity / popularity[-1], rng.random(lengths.sum())), items - 1)
    near = np.flatnonzero(rng.random(len(item) - 1) < 0.5) + 1
    item[near] = (item[near - 1] + rng.integers(1, 9, len(near))) % items
    flat = torch.from_numpy(rng.permutation(items)[item] + 1)
    return every_example(flat, lengths)


def every_example(flat: torch.Tensor, lengths: np.ndarray) -> Examples:
    """All examples with a history of these users' items, one user after the other; lengths: of each user."""
    start = np.repeat(np.cumsum(lengths) - lengths, lengths - 1)
    stop = np.flatnonzero(np.repeat(np.cumsum(lengths) - lengths, lengths) < np.arange(len(flat)))
    users = np.repeat(np.arange(1, len(lengths) + 1), lengths - 1)
    return Examples(torch.from_numpy(users), flat[stop], torch.from_numpy(start), torch.from_numpy(stop), flat)


if __name__ == "__main__":
    main()
