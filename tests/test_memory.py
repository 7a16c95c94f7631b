"""Freed memory is kept in a process of ours, unless its user has decided otherwise."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, torch
from recbole_prmkd.recbole_host.memory import keep_freed_memory, large_blocks_kept
print(keep_freed_memory())
torch.set_num_threads(1)
with large_blocks_kept():
    for _ in range(3):
        torch.ones(1 << 24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(1 << 24)  # 64 MiB, 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

EVALUATION = """
import torch
from recbole_prmkd.recbole_host.memory import keep_freed_memory, peak_memory_mb
keep_freed_memory()
torch.set_num_threads(1)
before, kept, users = peak_memory_mb(torch.device("cpu")), [], torch.arange(167)
for batch in range(12):  # as RecBole ranks 100,000 items; kept in training's way it would grow by 75 MB with each
    raw = torch.rand(167, 100_000).clamp(min=0)
    best = raw.scatter(1, torch.randint(0, 100_000, (167, 50)), 0).amax(1, keepdim=True)
    scores = (torch.where(best > 0, raw / best, 0) + 0.1).log()
    first = torch.topk(scores, 10, dim=-1).indices
    positive = torch.zeros_like(scores, dtype=torch.int)
    positive[users, torch.randint(0, 100_000, (167,))] = 1
    kept.append(torch.cat((torch.gather(positive, 1, first), positive.sum(1, keepdim=True)), 1))
    kept.append(torch.topk(scores, 10, dim=-1).indices[:, 0] == 5)
print(peak_memory_mb(torch.device("cpu")) - before)
"""


PEAK = """
import torch
from recbole_prmkd.recbole_host.memory import forget_peak_memory, peak_memory_mb
cpu = torch.device("cpu")
print(peak_memory_mb(cpu))
block = torch.ones(1 << 26)  # 256 MiB
print(peak_memory_mb(cpu))
del block
forget_peak_memory(cpu)
print(peak_memory_mb(cpu))
"""


def _output(program: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _run(**variables: str) -> tuple[str, int]:
    asked, faults = _output(PROGRAM, **variables).split()
    return asked, int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_large_blocks_come_back_without_page_faults():
    asked, faults = _run()
    untouched, many = _run(MALLOC_MMAP_THRESHOLD_="1000000")
    assert (asked, untouched) == ("True", "False")
    assert faults < many / 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked")
def test_outside_training_large_blocks_are_given_back():
    assert float(_output(EVALUATION)) < 700


def test_the_peak_of_a_step_alone():
    # A process of its own: whether a freed block leaves it must not depend on other tests.
    before, with_block, after = map(float, _output(PEAK).split())
    assert with_block >= before + 250 and (not Path("/proc/self/clear_refs").exists() or after < with_block - 250)
