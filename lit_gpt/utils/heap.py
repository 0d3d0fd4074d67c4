"""The heap of the C library: what a step of training on a CPU frees, the next one takes again.

glibc gives the top of its heap back to the kernel as soon as enough of it is free, which is at the end of every step.
The next step asks for the same pages again, and the kernel clears each of them at its first use: a fifth of the
processor time at a vocabulary of 32,000 (docs/performance_details.md).
"""

from __future__ import annotations

import ctypes
import os
import sys

# Of glibc's malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 2**31 - 1  # bytes free at the top from which on they go back: the most that mallopt takes
# Bytes of a block from which on it is a mapping of its own, which always goes back: glibc's DEFAULT_MMAP_THRESHOLD_MAX,
# which it comes to by itself, but not where the other one is given.
LARGE = 2**25
BY_HAND = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Have the heap of this process keep up to 2 GiB that is free. Returns whether it does.

    It does not where the C library is not glibc, nor where the environment says what its thresholds are (BY_HAND).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or any(name in os.environ for name in BY_HAND):
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGE) and mallopt(TRIM_THRESHOLD, KEPT))
