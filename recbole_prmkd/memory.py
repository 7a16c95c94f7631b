"""Keep freed memory in the process, so that a CPU does not spend a third of a step on getting it back zeroed.

Each step of a student allocates the same large blocks anew (scores of all items, of all candidates). The C library of
Linux gives blocks of that size back to the system when they are freed, and the system hands them out again page by
page, each one zeroed. Nothing that is computed depends on it.
"""

import ctypes
import os
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8  # of malloc.h
_KEPT = (1 << 31) - 1  # bytes free at the heap's end before any go back
_GROWTH = 1 << 26  # bytes that the heap grows by at least


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed; returns whether it was asked.

    Not where it is another library than glibc, or the user has set it himself by MALLOC_ variables.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: _KEPT, _TOP_PAD: _GROWTH, _ARENA_MAX: 1}
    return all(library.mallopt(name, value) for name, value in settings.items())
