"""Attention with any weights, in plain torch, without the whole matrix of them in memory.

For kinds of attention that no library kernel does. Queries go in chunks; each chunk looks at
the keys it can see and no others, and its weights are computed again in the backward pass, so
that memory is O(chunk * K) and not O(Q * K).

Shapes: B batch, Q queries (the last Q positions), K keys, H query heads, G key-value heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.masks import dense_mask

CHUNK = 512  # queries at once: large enough for full-speed products; at 4,096 keys a chunk's scores are 8 MiB a head

# (scaled scores (B, H, q, k), -inf where a query does not see a key, queries, keys) -> weights
Weigh = Callable[[Tensor, slice, slice], Tensor]


def chunked_attention(
    q_BQHD: Tensor,
    k_BKGD: Tensor,
    v_BKGV: Tensor,
    weigh: Weigh,
    *,
    scale: float,
    window: int | None = None,
    doc_ids: Tensor | None = None,
    visible: Tensor | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """The sum of values under weigh(scores), (B, Q, H, V) in q's dtype.

    window, doc_ids: as in lit_gpt.ops.attention. visible: the (B or 1, 1, Q, K) mask that they
    make, where it exists already.
    """
    q_len, k_len = q_BQHD.shape[1], k_BKGD.shape[1]
    past, outputs = k_len - q_len, []
    # One chunk has nothing to gain: its scores are all there are.
    save_memory = torch.is_grad_enabled() and q_len > chunk
    for start in range(0, q_len, chunk):
        queries = slice(start, min(start + chunk, q_len))
        # Keys that no query of the chunk sees are cut off: half of the work without a window, nearly all with one.
        first = 0 if window is None else max(0, past + start + 1 - window)
        keys = slice(first, past + queries.stop)
        if visible is not None:
            seen = visible[..., queries, keys]
        else:
            ids = None if doc_ids is None else doc_ids[:, keys]
            seen = dense_mask(queries.stop - start, keys.stop - first, window, ids, q_BQHD.device)
        run = partial(_attend, weigh=weigh, queries=queries, keys=keys, scale=scale)
        inputs = q_BQHD[:, queries], k_BKGD[:, keys], v_BKGV[:, keys], seen
        outputs.append(checkpoint(run, *inputs, use_reentrant=False) if save_memory else run(*inputs))
    return torch.cat(outputs, dim=1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, weigh: Weigh, queries: slice, keys: slice, scale: float
) -> Tensor:
    """One chunk. Products in the inputs' dtype, scores and weights in at least fp32."""
    groups = k.shape[2]
    scores = torch.einsum("bqgrd,bkgd->bgrqk", q.unflatten(2, (groups, -1)), k).flatten(1, 2)
    weights_BHQK = weigh((upcast(scores) * scale).masked_fill(~seen, -torch.inf), queries, keys).to(v.dtype)
    return torch.einsum("bgrqk,bkgv->bqgrv", weights_BHQK.unflatten(1, (groups, -1)), v).flatten(2, 3)
