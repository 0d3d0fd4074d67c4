"""What a layer remembers between calls of cached decoding."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

# Positions of a buffer beyond those that are kept. Whenever they are used up the kept ones are copied, once in so many
# tokens, while attention reads them at every token: the copies are a few percent of that.
SPARE = 64


class History:
    """The last positions of a tensor (batch, positions, ...), in order, in a buffer that is allocated once.

    keep: how many of them a later call needs, beside its own; None is all, max_len.
    """

    def __init__(
        self,
        batch: int,
        max_len: int,
        keep: int | None,
        sizes: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.wanted, self.max_len = keep, max_len
        # Growing by concatenation would copy what is kept at every token.
        self.buffer = torch.empty(batch, self._size(), *sizes, device=device, dtype=dtype)
        self.end = 0  # of what the buffer holds
        self.left = max_len

    @property
    def keep(self) -> int:
        """Positions that are kept."""
        return self.max_len if self.wanted is None else min(self.wanted, self.max_len)

    def _size(self) -> int:
        return min(self.max_len, self.keep + SPARE)

    def extend(self, count: int) -> None:
        """Room for so many positions more than max_len said."""
        self.max_len, self.left = self.max_len + count, self.left + count
        batch, size, *sizes = self.buffer.shape
        if self._size() > size:
            self.buffer = torch.cat([self.buffer, self.buffer.new_empty(batch, self._size() - size, *sizes)], dim=1)

    def append(self, new_BT: Tensor) -> Tensor:
        """The kept positions and T more, which are all that their queries may see; good until the next call.

        Without room for T more, as after a long prompt, this is a tensor of its own, of which the last positions stay.
        """
        count, first = new_BT.shape[1], max(0, self.end - self.keep)
        assert count <= self.left, f"the cache has room for {self.left} more tokens, {count} were given"
        self.left -= count
        if self.end + count <= self.buffer.shape[1]:
            self.buffer[:, self.end : self.end + count] = new_BT
            self.end += count
            return self.buffer[:, first : self.end]
        whole = torch.cat([self.buffer[:, first : self.end], new_BT], dim=1)
        self.end = min(self.keep, whole.shape[1])
        self.buffer[:, : self.end] = whole[:, whole.shape[1] - self.end :]
        return whole


class KVCache:
    """Keys and values of one attention layer, (batch, positions, n_kv_head, head_dim); keys with positions encoded.

    keep: positions that a later call needs beside its own, None for all of max_len; see History.
    """

    def __init__(
        self,
        batch: int,
        max_len: int,
        keep: int | None,
        heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.k, self.v = (History(batch, max_len, keep, (heads, head_dim), device, dtype) for _ in range(2))

    def append(self, k_BTGD: Tensor, v_BTGD: Tensor) -> tuple[Tensor, Tensor]:
        """Store T more positions; the keys and values of those kept and these, see History."""
        return self.k.append(k_BTGD), self.v.append(v_BTGD)


def select_rows(cache: Any, index_R: Tensor) -> None:
    """Keep these rows of everything that a layer remembers, in place; a row may be asked for several times."""
    fields = _fields(cache)
    for name, value in fields.items():
        if isinstance(value, Tensor):
            fields[name] = value.index_select(0, index_R)
        elif _holds(value):
            select_rows(value, index_R)


def rows_of(cache: Any, index_R: Tensor) -> Any:
    """Another cache that remembers these rows of this one, which stays as it is."""
    select_rows(other := _with_fields_of_its_own(cache), index_R)
    return other


def _with_fields_of_its_own(cache: Any) -> Any:
    """Another cache with the same tensors."""
    other = copy(cache)
    fields = _fields(other)
    fields.update({name: _with_fields_of_its_own(value) for name, value in fields.items() if _holds(value)})
    return other


def extend(cache: Any, count: int) -> None:
    """Room for so many more positions in everything that a layer remembers of each."""
    for value in _fields(cache).values():
        if isinstance(value, History):
            value.extend(count)
        elif _holds(value):
            extend(value, count)


def tensors(cache: Any) -> list[Tensor]:
    """Everything that a layer remembers; the bytes of these are the memory that it takes between calls."""
    values = list(_fields(cache).values())
    own = [value for value in values if isinstance(value, Tensor)]
    return own + [tensor for value in values if _holds(value) for tensor in tensors(value)]


def _holds(value: Any) -> bool:
    return not isinstance(value, Tensor) and (isinstance(value, dict) or hasattr(value, "__dict__"))


def _fields(cache: Any) -> dict[str, Any]:
    """A cache is an object or a dictionary; what changes in these fields changes in the cache."""
    return cache if isinstance(cache, dict) else vars(cache)
