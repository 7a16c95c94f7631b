"""Two ways of the same work, timed in turns in one run: only the ratio is meant to be quoted."""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

_lines: list[dict[str, Any]] = []


def device_name(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, in seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def in_turns(
    plain: Callable[[], Any], ours: Callable[[], Any], runs: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Seconds of each run of the two, which take turns so that a noisy machine disturbs both alike."""
    pairs = [(seconds(plain, device), seconds(ours, device)) for _ in range(runs)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def report(
    benchmark: str,
    model: str,
    plain: list[float],
    ours: list[float],
    number: int,
    unit: str,
    cost: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Print one JSON object, and return it. ratio: the median over the pairs of runs of what ratio_of says.

    cost: ours / plain, how many times as long ours takes; else plain / ours, how many times faster it is.
    """
    ratios = [b / a if cost else a / b for a, b in zip(plain, ours, strict=True)]
    line = {
        "benchmark": benchmark,
        "model": model,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of": "ours / plain" if cost else "plain / ours",
        "median": {
            f"plain {unit}/s": round(number / statistics.median(plain), 1),
            f"ours {unit}/s": round(number / statistics.median(ours), 1),
        },
        "runs": [round(ratio, 3) for ratio in ratios],
        **more,
    }
    print(json.dumps(line), flush=True)
    _lines.append(line)
    return line


def collect(line: dict[str, Any]) -> None:
    """Take into the table what another process has reported."""
    _lines.append(line)


def table() -> str:
    """What `report` printed, to read."""
    return pd.DataFrame([{**line, **line["median"]} for line in _lines]).drop(columns="median").to_string(index=False)
