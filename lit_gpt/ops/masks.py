"""Which keys a query sees: those at or before it, within a window, in its own document.

Positions count from the first key; with fewer queries than keys (cached decoding) the
queries are the last positions. A window of W tokens includes the query itself.

Shapes: B batch, Q queries, K keys, N blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BAND_MULTIPLE = 64  # tokens; kernels' tiles are no smaller
BLOCK = 128  # tokens of a block: the default of create_block_mask, which FlexAttention's kernels are tuned for


def in_reach(queries: int, keys: int, window: int | None) -> int:
    """How many of so many keys some query sees: the last ones, back to where the first query's window starts."""
    return keys if window is None else min(keys, window - 1 + queries)


class Request(NamedTuple):
    """What a backend of softmax attention is chosen by.

    window: None also where it covers every key. offsets: the documents are given as
    cu_seqlens too, which kernels for packed rows read. dim: head dimension, None where nobody says it.
    """

    device: str
    q_len: int
    k_len: int
    window: int | None
    documents: bool
    sink: bool
    dtype: torch.dtype = torch.float32
    offsets: bool = False
    dim: int | None = None

    @property
    def masked(self) -> bool:
        """Whether a query may not see every earlier key."""
        return self.documents or self.window is not None


def dense_mask(q_len: int, k_len: int, window: int | None, doc_ids_BK: Tensor | None, device: torch.device) -> Tensor:
    """True where a query sees a key: (B, 1, Q, K), with B = 1 when there are no documents."""
    k_pos = torch.arange(k_len, device=device)
    # Queries are the last q_len positions, so in cached decoding a query sees all keys before it.
    distance_QK = k_pos[k_len - q_len :, None] - k_pos
    visible = distance_QK >= 0
    if window is not None:
        visible &= distance_QK < window
    if doc_ids_BK is None:
        return visible[None, None]
    same = doc_ids_BK[:, k_len - q_len :, None] == doc_ids_BK[:, None, :]
    return (visible & same)[:, None]


def band_block(window: int) -> int:
    """Tokens of a band's block: the window rounded up, so that no query sees farther than the block before its own."""
    return window + -window % BAND_MULTIPLE


def band_mask(length: int, window: int, doc_ids_BT: Tensor | None, device: torch.device) -> Tensor:
    """The same mask for blocks of L = band_block(window) queries, each with the L keys before it and its own:
    (B or 1, N, 1, L, 2 L), for as many queries as keys.

    The last block is filled up with tokens of the last document, which see themselves at least: a softmax over nothing
    has no gradient.
    """
    block = band_block(window)
    positions = torch.arange(length + -length % block, device=device)
    q_NL = positions.unflatten(0, (-1, block))
    k_NK = torch.cat([q_NL - block, q_NL], dim=-1)
    distance_NLK = q_NL[..., None] - k_NK[:, None, :]
    visible = ((distance_NLK >= 0) & (distance_NLK < window) & (k_NK >= 0)[:, None, :])[None]
    if doc_ids_BT is not None:
        ids_BT = doc_ids_BT[:, positions.clamp(max=length - 1)]
        ids_BNK = ids_BT[:, k_NK.clamp(min=0)]
        visible = visible & (ids_BT.unflatten(1, (-1, block))[..., None] == ids_BNK[..., None, :])
    return visible[:, :, None]


def block_mask(length: int, window: int | None, doc_ids_BT: Tensor | None, device: torch.device) -> BlockMask:
    """The same mask for FlexAttention, for as many queries as keys.

    Which blocks are empty and which are full is worked out from the bounds of each block, in
    O(B N^2) instead of the O(B T^2) of `create_block_mask`. Exact for any document ids; blocks
    are skipped best when ids do not decrease along a row, as in packed data.
    """
    n = -(-length // BLOCK)
    block = torch.arange(n, device=device)
    distance_NN = block[:, None] - block
    # some: at least one pair of the block is visible. full: all are, so that the kernel skips mask_mod.
    some, full = distance_NN >= 0, distance_NN > 0
    if window is not None:
        # The nearest pair of two blocks is (d - 1) BLOCK + 1 tokens apart, the farthest (d + 1) BLOCK - 1.
        some = some & ((distance_NN - 1) * BLOCK + 1 < window)
        full = full & ((distance_NN + 1) * BLOCK - 1 < window)
    some, full = some[None], full[None]
    if doc_ids_BT is not None:
        positions = torch.arange(n * BLOCK, device=device).clamp(max=length - 1)
        # Two blocks can share a document only where their ranges of ids overlap, and surely do where both hold one.
        low_BN, high_BN = doc_ids_BT[:, positions].unflatten(1, (n, BLOCK)).aminmax(dim=-1)
        overlap = (low_BN[:, :, None] <= high_BN[:, None]) & (low_BN[:, None] <= high_BN[:, :, None])
        single = (low_BN[:, :, None] == high_BN[:, None]) & (low_BN[:, None] == high_BN[:, :, None])
        some, full = some & overlap, full & single

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        seen = q >= k
        if window is not None:
            seen = seen & (q - k < window)
        return seen if doc_ids_BT is None else seen & (doc_ids_BT[b, q] == doc_ids_BT[b, k])

    return BlockMask.from_kv_blocks(
        *_ordered(some & ~full), *_ordered(full), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(length, length)
    )


def _ordered(blocks_BNN: Tensor) -> tuple[Tensor, Tensor]:
    """(how many key blocks each query block has, their indices first in each row), with a head axis."""
    blocks = blocks_BNN[:, None]
    indices = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), indices.int()
