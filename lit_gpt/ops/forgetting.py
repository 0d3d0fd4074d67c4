"""Forgetting attention (arXiv:2503.02130): softmax attention whose scores decay with what was forgotten since.

    y_i = sum_j softmax_j(scale q_i . k_j + sum over l = j+1..i of log f_l) v_j

Shapes as in lit_gpt.ops.attention; log f is (B, K, H), at most 0, one per query head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.ops.backends import Backend, choose, explain_table, missing, optional
from lit_gpt.ops.chunked import chunked_attention
from lit_gpt.ops.dtypes import upcast

LARGEST_HEAD = 256  # of fla's kernel


class Request(NamedTuple):
    """What a backend is chosen by. offsets: the documents are given as cu_seqlens too."""

    device: str
    dtype: torch.dtype
    q_len: int
    k_len: int
    head_dim: int
    documents: bool
    offsets: bool


def forgetting_attention(
    q_BQHD: Tensor,
    k_BKGD: Tensor,
    v_BKGV: Tensor,
    log_forget_BKH: Tensor,
    *,
    scale: float,
    window: int | None = None,
    doc_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    visible: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """(B, Q, H, V) in q's dtype.

    doc_ids: (B, K), kept apart as in lit_gpt.ops.attention; cu_seqlens: the same as offsets,
    (N + 1,) int32. visible: the (B or 1, 1, Q, K) mask of window and documents, where it exists
    already. Raises UserError for a backend that is unknown or does not do this.
    """
    (q_len, _, dim), k_len, offsets = q_BQHD.shape[1:], k_BKGD.shape[1], cu_seqlens is not None
    request = Request(q_BQHD.device.type, q_BQHD.dtype, q_len, k_len, dim, doc_ids is not None, offsets)
    run = BACKENDS[choose("forgetting attention", BACKENDS, request, backend)].run
    return run(q_BQHD, k_BKGD, v_BKGV, log_forget_BKH, scale, window, doc_ids, cu_seqlens, visible)


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, torch.bfloat16, 64, 64, 64, False, False))


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_forget_BKH: Tensor,
    scale: float,
    window: int | None,
    doc_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    visible: Tensor | None,
) -> Tensor:
    """Queries in chunks; does everything."""
    # The decay from j to i is a difference of cumulative sums: in fp32, since the sums grow with the length.
    total_BHK = upcast(log_forget_BKH).cumsum(1).transpose(1, 2)
    of_queries = total_BHK[:, :, k.shape[1] - q.shape[1] :]

    def weigh(scores_BHQK: Tensor, queries: slice, keys: slice) -> Tensor:
        decay_BHQK = of_queries[:, :, queries, None] - total_BHK[:, :, None, keys]
        return (scores_BHQK + decay_BHQK).softmax(-1)

    return chunked_attention(q, k, v, weigh, scale=scale, window=window, doc_ids=doc_ids, visible=visible)


@torch.compiler.disable()
def _fla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_forget_BKH: Tensor,
    scale: float,
    window: int | None,
    doc_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    visible: Tensor | None,
) -> Tensor:
    """flash-linear-attention's Triton kernel, for whole sequences."""
    run = optional("fla.ops.forgetting_attn").parallel_forgetting_attn
    inputs = (q, k, v, upcast(log_forget_BKH))
    if doc_ids is None:
        return run(*inputs, scale, window)
    # fla reads cu_seqlens only with a batch of one, so rows are laid end to end.
    packed = (x.flatten(0, 1)[None] for x in inputs)
    return run(*packed, scale, window, cu_seqlens).view(*q.shape[:3], v.shape[-1])


def _fla_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    if request.dtype == torch.float64:
        return "it has no float64"
    if request.q_len != request.k_len:
        return "it is for whole sequences, not for cached decoding"
    if request.head_dim > LARGEST_HEAD:
        return f"its heads are at most {LARGEST_HEAD} wide, not {request.head_dim}"
    if request.documents and not request.offsets:
        return "it needs cu_seqlens"
    return missing("fla.ops.forgetting_attn")


BACKENDS: dict[str, Backend] = {
    "fla": Backend(_fla, _fla_refuses),
    "plain": Backend(_plain, lambda r: ""),
}
