"""What the benchmarks share: their options, and two alternatives timed in turns, of which only the ratio is meant to be
quoted, since a noisy machine disturbs both alike."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from recbole_prmkd.recbole_host.memory import keep_freed_memory, peak_memory_mb

# Does the work once; returns the number of its units (examples, items, steps), and what it gave.
Work = Callable[[], tuple[int, Any]]


def options(doc: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line: an option for each default, of its type (None: text). RecBole reads all others as settings."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, allow_abbrev=False, formatter_class=style)
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=str if default is None else type(default), default=default)
    found, sys.argv[1:] = parser.parse_known_args()
    keep_freed_memory()  # as the command line does, for both sides of a ratio
    return found


def seconds(work: Work, device: torch.device) -> float:
    """Wall time of one unit of the work, in seconds."""
    started = time.perf_counter()
    number, _ = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / number


def compare(
    benchmark: str,
    model: str,
    plain: Work,
    ours: Work,
    runs: int,
    device: torch.device,
    unit: str,
    peer: str,
    cost: bool = False,
    agree: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Time both in turns, print one JSON object, and return it.

    ratio: the median over the pairs of runs. cost: ours / plain, how many times as long ours takes for a unit; else
    plain / ours, how many times faster it is. The first run of both is not timed (caches, the choice of a path).

    Args:
        peer: what `plain` is, for the table.
        agree: the tolerance (rtol, atol) to which both must give the same.
    """
    (_, expected), (_, given) = plain(), ours()
    if agree is not None:
        np.testing.assert_allclose(given, expected, **{"rtol": 0.0, **agree})
    pairs = [(seconds(plain, device), seconds(ours, device)) for _ in range(runs)]
    ratios = [b / a if cost else a / b for a, b in pairs]
    threads = torch.get_num_threads()
    line = {
        "benchmark": benchmark,
        "model": model,
        "peer": peer,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of": "ours / plain" if cost else "plain / ours",
        f"plain {unit}/s": round(1 / statistics.median(a for a, _ in pairs), 1),
        f"ours {unit}/s": round(1 / statistics.median(b for _, b in pairs), 1),
        "runs": [round(ratio, 3) for ratio in ratios],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {threads} threads",
        "peak_mb": round(peak_memory_mb(device) or 0),
    }
    print(json.dumps(line), flush=True)
    return line


def table(lines: Sequence[dict[str, Any]]) -> str:
    """What `compare` returned, to read."""
    return pd.DataFrame(lines).to_string(index=False)
