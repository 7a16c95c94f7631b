"""Memory of the process: what it keeps between two steps, and the most that it has held.

Each step of a student allocates the same large blocks anew (scores of all items, of all candidates). The C library of
Linux gives blocks of that size back to the system when they are freed, and the system hands them out again page by
page, each one zeroed: a third of a step on a CPU. So they are kept in training, and nowhere else: where each batch
leaves something small behind, as in an evaluation, the heap would grow by a block with each. Nothing that is computed
depends on it.
"""

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8  # of malloc.h
_KEPT = (1 << 31) - 1  # bytes free at the heap's end before any go back
_GROWTH = 1 << 26  # bytes that the heap grows by at least
_LARGE = 1 << 25  # bytes of a block that is given back outside training; the most that glibc takes
_BLOCKS = 1 << 16  # large blocks at a time; glibc's default

_library: ctypes.CDLL | None = None  # once it was asked


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed, and large blocks in training; returns whether it was asked.

    Not where it is another library than glibc, or the user has set it himself by MALLOC_ variables.
    """
    global _library
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    settings = {_MMAP_THRESHOLD: _LARGE, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _GROWTH, _ARENA_MAX: 1}
    if not all(library.mallopt(name, value) for name, value in settings.items()):
        return False
    _library = library
    return True


@contextmanager
def large_blocks_kept() -> Iterator[None]:
    """Inside, freed blocks of any size are kept, where `keep_freed_memory` was asked: for an epoch of training."""
    if _library is None:
        yield
        return
    _library.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        _library.mallopt(_MMAP_MAX, _BLOCKS)


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that this process has held, in MB (2**20 bytes): on the GPU where it used one, else in all.

    Since `forget_peak_memory`, where that can be. The process's own figure includes Python and torch, about 500 MB, and
    what the run has prepared by then.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the process that started this one too
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        if peak:
            return int(peak[1]) / 2**10
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**20 if sys.platform == "darwin" else 2**10)


def forget_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_mb` start from what is held now, so that one step of a process can be measured alone.

    On a CPU only Linux can do that; elsewhere the peak stays the whole process's.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc: resets VmHWM
