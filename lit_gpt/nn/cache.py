"""What a layer remembers between calls of cached decoding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class KVCache:
    """Keys and values of one attention layer in preallocated buffers.

    Shapes: (batch, max_len, n_kv_head, head_dim). Keys are stored with their positions
    already encoded. Windowed layers keep every key; the mask hides what is too old.
    """

    def __init__(self, batch: int, max_len: int, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype):
        shape = (batch, max_len, heads, head_dim)
        # Allocated once: growing by concatenation would copy all keys and values at every token.
        self.k, self.v = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        self.length = 0

    def append(self, k_BTGD: Tensor, v_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; the keys and values of all positions so far, as views."""
        end = self.length + k_BTGD.shape[1]
        assert end <= self.k.shape[1], f"the cache holds {self.k.shape[1]} tokens, {end} were given"
        self.k[:, self.length : end] = k_BTGD
        self.v[:, self.length : end] = v_BTGD
        self.length = end
        return self.k[:, :end], self.v[:, :end]


def select_rows(cache: Any, index_R: Tensor) -> None:
    """Keep these rows of everything that a layer remembers, in place; a row may be asked for several times."""
    for name, value in vars(cache).items():
        if isinstance(value, Tensor):
            setattr(cache, name, value.index_select(0, index_R))
        elif hasattr(value, "__dict__"):
            select_rows(value, index_R)
