"""Rows cut into segments, so that a few long ones fill a GPU: into how many, and the states between them.

What a scan does to a state is linear: first every segment runs from a zero state, then its true one is known.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MIN_SEGMENTS = 4  # segments do a part of the work twice, so less than 4 gain nothing


def count(programs: int, room: int, possible: Callable[[int], bool]) -> int:
    """Segments of each row: a power of two, as many as the GPU goes through at once.

    programs: of all rows uncut. room: programs that the GPU runs at once. possible: whether a row has so many.
    """
    segments = 1
    while 2 * segments * programs <= room and possible(2 * segments):
        segments *= 2
    return segments if segments >= MIN_SEGMENTS else 1


@torch.compiler.assume_constant_result
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU, which a compiler must not trace."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def true_states(ends: Tensor, decay: Tensor, first: Tensor | None, backward: bool = False) -> Tensor:
    """The state before each segment, (B, S, ...); backward, the gradient of that after each.

    ends: (B, S, ...), where each segment ends from a zero state. decay: through each, as broadcast to it. first: the
    state before the first segment, or backward the gradient of that after the last; None for zeros.
    """
    order = range(ends.shape[1])[::-1] if backward else range(ends.shape[1])
    true = [torch.zeros_like(ends[:, 0]) if first is None else first]
    for i in order[:-1]:
        true.append(ends[:, i] + decay[:, i] * true[-1])
    return torch.stack(true[::-1] if backward else true, dim=1)
