"""How much of a GPU an evaluation may take: what is free, less a margin, so that others on it go on.

A batch is as large as memory takes, and what memory takes is found by trying. Without a limit the trial ends where the
GPU ends, and the process that runs out first may be another's training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

MARGIN = 0.1  # of the memory that nobody uses: room for what others allocate for a moment, such as gradients
Found = TypeVar("Found")


def allowed_share(*, total: int, free: int, cached: int, used: int) -> float:
    """The part of a GPU, from 0 to 1, that this process may have: what it uses, and what nobody does less the margin.

    In bytes, total: of the GPU. free: held by no process. cached: held by this one without use. used: by its tensors.
    What is cached counts as free, so that a second evaluation in one process is allowed as much as the first.
    """
    return min(1.0, (used + (1 - MARGIN) * (free + cached)) / total)


@contextmanager
def leaving_room(device: torch.device) -> Iterator[None]:
    """Within, this process runs out of memory (torch.OutOfMemoryError) before it takes what others may need."""
    if device.type != "cuda":
        yield
        return
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - used
    before = torch.cuda.get_per_process_memory_fraction(device)
    share = allowed_share(total=total, free=free, cached=cached, used=used)
    torch.cuda.set_per_process_memory_fraction(min(before, share), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


class Limit:
    """Of a batch, in tokens or rows: as many as memory takes."""

    def __init__(self, most: int):
        self.most = most

    def attempt(self, work: Callable[[], Found], *, size: int, single: bool) -> Found | None:
        """The result; None where memory did not suffice for this size, and then the next one is half as large.

        single: the batch cannot be smaller, and the error goes on.
        """
        try:
            return work()
        except torch.OutOfMemoryError:
            if single:
                raise
        torch.cuda.empty_cache()
        self.most = max(1, min(self.most, size) // 2)
        return None
