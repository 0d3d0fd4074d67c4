"""Causal softmax attention: one entry point, several backends, a plain reference.

    y_BQHD = attention(q_BQHD, k_BKGD, v_BKGD, scale=..., window=..., doc_ids=..., sink=...)

A backend is a function and a predicate that says why it does not do a request; "auto" is
the first of BACKENDS that does. To add one (a new kernel), add a row.

Shapes: B batch, Q queries, K keys, H query heads, G key-value heads (H % G == 0), D head
dimension. With Q < K the queries are the last Q positions.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.masks import block_mask, dense_mask

Mask = Tensor | BlockMask | None  # None is causal without window or documents

# Fastest first on Hopper; efficient and math are there for fp32 and odd head dimensions.
CUDA_PRIORITY = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

ALIGNED = 8  # head dimensions that cuDNN takes are multiples of this


class Request(NamedTuple):
    """What a backend is chosen by. window: None also where it covers every key."""

    device: str
    q_len: int
    k_len: int
    window: int | None
    documents: bool
    sink: bool

    @property
    def masked(self) -> bool:
        return self.documents or self.window is not None


class Backend(NamedTuple):
    """run(q, k, v, mask, scale, sink); refuses(request) is the reason why not, or ""."""

    run: Callable[[Tensor, Tensor, Tensor, Any, float, Tensor | None], Tensor]
    refuses: Callable[[Request], str]


def attention(
    q_BQHD: Tensor,
    k_BKGD: Tensor,
    v_BKGD: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    doc_ids: Tensor | None = None,
    sink: Tensor | None = None,
    mask: Mask = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale * q k^T) v over the visible keys, (B, Q, H, D) in q's dtype.

    scale: None is 1/sqrt(D). window: tokens a query sees, itself included. doc_ids: (B, K)
    integers; a query sees its own document. sink: (H,) logits that join each head's
    softmax denominator (arXiv:2508.10925). mask: what `prepare_mask` gave for the same
    arguments, shared by layers; built here when None.
    Raises UserError for a backend that is unknown or does not do this.
    """
    scale = 1 / math.sqrt(q_BQHD.shape[-1]) if scale is None else scale
    request = describe(q_BQHD.device, q_BQHD.shape[1], k_BKGD.shape[1], window, doc_ids is not None, sink is not None)
    if mask is None:
        mask = prepare_mask(request, doc_ids, q_BQHD.device, backend)
    return BACKENDS[pick(request, backend)].run(q_BQHD, k_BKGD, v_BKGD, mask, scale, sink)


def describe(device: torch.device, q_len: int, k_len: int, window: int | None, documents: bool, sink: bool) -> Request:
    """The request of one attention call; a window that hides nothing is dropped."""
    window = None if window is None or window >= k_len else window
    return Request(device.type, q_len, k_len, window, documents, sink)


def pick(request: Request, backend: str = "auto") -> str:
    """Name of the backend for a request. Raises UserError when the one asked for does not do it."""
    if backend == "auto":
        return next(name for name, b in BACKENDS.items() if not b.refuses(request))
    if backend not in BACKENDS:
        names = ("auto", *BACKENDS)
        raise UserError(
            f"Unknown attention backend {backend!r}.{did_you_mean(backend, names)} Use one of {', '.join(names)}."
        )
    if reason := BACKENDS[backend].refuses(request):
        raise UserError(f"The attention backend {backend!r} cannot be used here: {reason}. Use 'auto'.")
    return backend


def prepare_mask(request: Request, doc_ids: Tensor | None, device: torch.device, backend: str = "auto") -> Mask:
    """The mask in the form that the request's backend reads: build once, pass to every layer."""
    if pick(request, backend) == "flex":
        return block_mask(request.k_len, request.window, doc_ids, device)
    if request.masked:
        return dense_mask(request.q_len, request.k_len, request.window, doc_ids, device)
    return None


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is used for), for `inspect env`."""
    plain = describe(device, 2, 2, None, False, False)
    rows = []
    for name, b in BACKENDS.items():
        reason = b.refuses(plain) and b.refuses(plain._replace(window=1))
        rows.append((name, not reason, reason or (b.run.__doc__ or "").split("\n")[0]))
    return rows


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sink: Tensor | None) -> Tensor:
    """Explicit masked softmax in fp32; does everything."""
    heads, groups = q.shape[2], k.shape[2]
    if mask is None:
        mask = dense_mask(q.shape[1], k.shape[1], None, None, q.device)
    k, v = (x.repeat_interleave(heads // groups, dim=2) for x in (k, v))
    logits_BHQK = torch.einsum("bqhd,bkhd->bhqk", upcast(q), upcast(k)) * scale
    logits_BHQK = logits_BHQK.masked_fill(~mask, -torch.inf)
    if sink is not None:
        column = upcast(sink)[:, None, None].expand(*logits_BHQK.shape[:3], 1).to(logits_BHQK.dtype)
        logits_BHQK = torch.cat([logits_BHQK, column], dim=-1)
    weights_BHQK = logits_BHQK.softmax(-1)[..., : k.shape[1]]
    return torch.einsum("bhqk,bkhd->bqhd", weights_BHQK, upcast(v)).to(q.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sink: Tensor | None) -> Tensor:
    """F.scaled_dot_product_attention: cuDNN or flash kernels on CUDA."""
    q_len, k_len = q.shape[1], k.shape[1]
    causal = mask is None and q_len == k_len
    if mask is None and 1 < q_len < k_len:
        mask = dense_mask(q_len, k_len, None, None, q.device)
    dim = q.shape[-1]
    if q.is_cuda and dim % ALIGNED:
        # Zeros change no product, and cuDNN does not do odd head dimensions (124: 1.2x the step time).
        q, k, v = (F.pad(x, (0, -dim % ALIGNED)) for x in (q, k, v))
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    options: dict[str, Any] = {"is_causal": causal, "scale": scale, "enable_gqa": q.shape[2] != k.shape[2]}
    with sdpa_kernel(CUDA_PRIORITY, set_priority=True) if q.is_cuda else contextlib.nullcontext():
        y = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, **options)
    return y.transpose(1, 2)[..., :dim]


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sink: Tensor | None) -> Tensor:
    """FlexAttention: windows, documents and sinks on CUDA, skipping empty blocks."""
    kernel = flex_attention if torch.compiler.is_compiling() or not q.is_cuda else _compiled_flex()
    y, aux = kernel(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=mask,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
        return_aux=AuxRequest(lse=True),
    )
    if sink is not None:
        assert aux.lse is not None
        # Z / (Z + e^sink) with Z = e^lse: the sink only shrinks the output.
        y = y * torch.sigmoid(aux.lse - upcast(sink)[:, None])[..., None].to(y.dtype)
    return y.transpose(1, 2)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _flex_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it is slow without a CUDA device"
    if request.q_len != request.k_len:
        return "it is compiled for whole sequences, not for cached decoding"
    return "" if request.masked or request.sink else "without window, documents or sinks SDPA is faster"


BACKENDS: dict[str, Backend] = {
    "flex": Backend(_flex, _flex_refuses),
    "sdpa": Backend(_sdpa, lambda r: "it has no sinks" if r.sink else ""),
    "reference": Backend(_reference, lambda r: ""),
}
