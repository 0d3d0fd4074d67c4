"""Causal softmax attention: one entry point, several kernels, plain torch.

    y_BQHV = attention(q_BQHD, k_BKGD, v_BKGV, scale=..., window=..., doc_ids=..., sink=...)

Read `attention` and then `_plain`: it is the definition, in a few lines of torch, and every other backend is tested
against it. A call has three steps: `describe` what is asked for, `prepare_mask` (which picks the backend, since each
reads a mask of its own form), and run the backend's row of BACKENDS; see lit_gpt.ops.backends. A model does the first
two once per forward pass for all its layers (lit_gpt.nn.context).

Shapes: B batch, Q queries, K keys, H query heads, G key-value heads (H % G == 0), D head
dimension, V head dimension of the values, D unless said otherwise. With Q < K the queries
are the last Q positions.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from lit_gpt.ops import flash, flash4, ring
from lit_gpt.ops.backends import Backend, choose, explain_table
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.masks import Request, band_block, band_mask, block_mask, dense_mask

# Fastest first on Hopper (docs/performance_details.md); efficient and math are there for fp32 and odd head dimensions.
CUDA_PRIORITY = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
# cuDNN plans anew for every pair of lengths, in about 50 ms, and a cache is longer at every token.
CUDA_PRIORITY_CACHED = [SDPBackend.FLASH_ATTENTION, *(b for b in CUDA_PRIORITY if b != SDPBackend.FLASH_ATTENTION)]
# torch's flash kernel for a CPU packs half precision with AVX-512 wherever the processor has it, and fails where
# ATEN_CPU_CAPABILITY forbids that (2.13: "pack_vnni2 is only supported when avx512 is supported").
CPU_FLASH_IN_HALF = torch.backends.cpu.get_cpu_capability() == "AVX512"

BAND_BLOCKS = 4  # of a sequence at least, since a block and the one before it are most of fewer
ALIGNED = 8  # head dimensions that CUDA kernels take are multiples of this: 16 bytes of bf16, one load
LEAST = 16  # and no smaller: FlexAttention (torch 2.11)


class Mask(NamedTuple):
    """Which keys queries see, in the form that one backend reads: None is every earlier key."""

    backend: str
    value: Tensor | BlockMask | flash.Visible | ring.Places | None

    @property
    def dense(self) -> Tensor | None:
        """The mask as booleans (B or 1, 1, Q, K), where that is its form."""
        return self.value if isinstance(self.value, Tensor) and self.value.ndim == 4 else None


def attention(
    q_BQHD: Tensor,
    k_BKGD: Tensor,
    v_BKGV: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    doc_ids: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    sink: Tensor | None = None,
    mask: Mask | None = None,
    backend: str = "auto",
) -> Tensor:
    """softmax(scale * q k^T) v over the visible keys, (B, Q, H, V) in q's dtype.

    scale: None is 1/sqrt(D). window: tokens a query sees, itself included. doc_ids: (B, K)
    integers; a query sees its own document. cu_seqlens: where the documents start, see
    `prepare_mask`. sink: (H,) logits that join each head's softmax denominator
    (arXiv:2508.10925). mask: what `prepare_mask` gave for the same arguments, shared by
    layers; made here when None.
    Raises UserError for a backend that is unknown or does not do this.
    """
    scale = 1 / math.sqrt(q_BQHD.shape[-1]) if scale is None else scale
    if mask is None:
        request = describe(
            q_BQHD.device,
            q_BQHD.shape[1],
            k_BKGD.shape[1],
            window,
            documents=doc_ids is not None,
            sink=sink is not None,
            dtype=q_BQHD.dtype,
            offsets=cu_seqlens is not None,
            dim=q_BQHD.shape[-1],
        )
        mask = prepare_mask(request, doc_ids, q_BQHD.device, backend, cu_seqlens)
    return BACKENDS[mask.backend].run(q_BQHD, k_BKGD, v_BKGV, mask.value, scale, sink)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sink: Tensor | None) -> Tensor:
    """Explicit masked softmax in fp32; does everything. mask: (B or 1, 1, Q, K), True where a query sees a key."""
    heads, groups = q.shape[2], k.shape[2]
    if mask is None:
        mask = dense_mask(q.shape[1], k.shape[1], None, None, q.device)
    # Query heads h * H / G to (h + 1) * H / G read key-value head h (arXiv:2305.13245), here copied for each.
    k, v = (x.repeat_interleave(heads // groups, dim=2) for x in (k, v))
    logits_BHQK = torch.einsum("bqhd,bkhd->bhqk", upcast(q), upcast(k)) * scale
    logits_BHQK = logits_BHQK.masked_fill(~mask, -torch.inf)
    if sink is not None:
        # One more column of the softmax, whose weight is then dropped: it takes probability and gives no value.
        column = upcast(sink)[:, None, None].expand(*logits_BHQK.shape[:3], 1).to(logits_BHQK.dtype)
        logits_BHQK = torch.cat([logits_BHQK, column], dim=-1)
    weights_BHQK = logits_BHQK.softmax(-1)[..., : k.shape[1]]
    return torch.einsum("bhqk,bkhd->bqhd", weights_BHQK, upcast(v)).to(q.dtype)


def describe(
    device: torch.device,
    q_len: int,
    k_len: int,
    window: int | None,
    documents: bool,
    sink: bool,
    dtype: torch.dtype = torch.float32,
    offsets: bool = False,
    dim: int | None = None,
) -> Request:
    """The request of one attention call; a window that hides nothing is dropped."""
    window = None if window is None or window >= k_len else window
    return Request(device.type, q_len, k_len, window, documents, sink, dtype, offsets, dim)


def pick(request: Request, backend: str = "auto") -> str:
    """Name of the backend for a request. Raises UserError when the one asked for does not do it."""
    table = BACKENDS if backend != "auto" or _in_training(request) else WITHOUT_FA4
    return choose("attention", table, request, backend)


def _in_training(request: Request) -> bool:
    """Whether auto may take FlashAttention 4. It compiles kernels for seconds, which a run does once; with fewer
    queries than keys it does not cut long rows, as torch's kernels for decoding do; and in a fixed order of sums nobody
    has timed it.
    """
    whole = request.device == "cuda" and request.q_len == request.k_len
    any_order = torch.is_grad_enabled() and not torch.are_deterministic_algorithms_enabled()
    return whole and any_order and flash4.is_faster(request.dim)


def prepare_mask(
    request: Request,
    doc_ids: Tensor | None,
    device: torch.device,
    backend: str = "auto",
    cu_seqlens: Tensor | None = None,
) -> Mask:
    """The backend that does a request and the mask it reads: make it once, pass it to every layer.

    doc_ids: (B, K). cu_seqlens: (N + 1,) int32, where the N documents start in the B * K keys,
    and B * K; given where request.offsets.
    """
    name = pick(request, backend)
    if name in flash.LIBRARIES:
        return Mask(name, flash.Visible(request.window, cu_seqlens if request.documents else None))
    if name == "flex":
        return Mask(name, block_mask(request.k_len, request.window, doc_ids, device))
    if name == "banded":
        assert request.window is not None
        return Mask(name, band_mask(request.k_len, request.window, doc_ids, device))
    if request.masked:
        return Mask(name, dense_mask(request.q_len, request.k_len, request.window, doc_ids, device))
    return Mask(name, None)


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is used for), for `inspect env`."""
    plain = describe(device, 4096, 4096, None, False, False, torch.bfloat16)
    rows = explain_table(BACKENDS, plain)
    windowed = explain_table(BACKENDS, plain._replace(window=128))
    return [row if row[1] else other for row, other in zip(rows, windowed)]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sink: Tensor | None) -> Tensor:
    """F.scaled_dot_product_attention: cuDNN or flash kernels on CUDA."""
    q_len, k_len = q.shape[1], k.shape[1]
    options: dict[str, Any] = {"is_causal": mask is None, "scale": scale}
    # Branches and not expressions: a compiler that lets sizes vary would pass these on as symbols.
    if q_len != k_len:
        options["is_causal"] = False  # torch aligns its causal mask with the first key, and queries here are the last
        if mask is None and q_len > 1:
            mask = dense_mask(q_len, k_len, None, None, q.device)
    if q.shape[2] != k.shape[2]:
        options["enable_gqa"] = True
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    kernels: Any = contextlib.nullcontext()
    if q.is_cuda:
        kernels = sdpa_kernel(CUDA_PRIORITY if q_len == k_len else CUDA_PRIORITY_CACHED, set_priority=True)
    elif q.dtype.itemsize == 2 and not CPU_FLASH_IN_HALF:
        kernels = sdpa_kernel(SDPBackend.MATH)
    with kernels:
        y = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, **options)
    return y.transpose(1, 2)


def _banded(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sink: Tensor | None) -> Tensor:
    """SDPA of blocks as long as the window, each with the block of keys before it: work grows with T, not with T^2."""
    length, block = q.shape[1], mask.shape[-2]
    # Blocks become rows of the batch; the first one's block before is the row's last, which the mask hides.
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, -length % block)).unflatten(1, (-1, block)) for x in (q, k, v))
    k, v = (torch.cat([x.roll(1, 1), x], dim=2).flatten(0, 1) for x in (k, v))
    of_blocks = mask.expand(len(q), -1, -1, -1, -1).flatten(0, 1)
    y = _sdpa(q.flatten(0, 1), k, v, of_blocks, scale, sink)
    return y.unflatten(0, q.shape[:2]).flatten(1, 2)[:, :length]


def _banded_refuses(request: Request) -> str:
    if request.window is None or request.q_len != request.k_len:
        return "it is for windows in whole sequences"
    least = BAND_BLOCKS * band_block(request.window)
    if request.k_len < least:
        return f"with a window of {request.window} it is for {least} tokens and more"
    return "it has no sinks" if request.sink else ""


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sink: Tensor | None) -> Tensor:
    """FlexAttention: windows, documents and sinks on CUDA, skipping empty blocks."""
    # Uncompiled FlexAttention is a reference that forms all scores; inside a compiled block it is compiled with it.
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
        # A sink is one more logit without a value (arXiv:2508.10925), so the kernel need not know it:
        # Z / (Z + e^sink) with Z = e^lse: the sink only shrinks the output.
        y = y * torch.sigmoid(aux.lse - upcast(sink)[:, None])[..., None].to(y.dtype)
    return y.transpose(1, 2)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    """Outside of compiled blocks, as in evaluation, batches have many shapes: the first has its own kernel, and all
    others share one. One for each would take 3.5 s, and after torch's limit of eight all scores would be formed.
    """
    return torch.compile(flex_attention)


def _padded(x: Tensor, multiple: int) -> Tensor:
    """x with zeros after its last dimension up to a multiple; not a copy where it is one."""
    return F.pad(x, (0, -x.shape[-1] % multiple)) if x.shape[-1] % multiple else x


def _fitted(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """For kernels of one head dimension D, on CUDA a multiple of ALIGNED: values in pieces of D, zeros where needed.

    Zeros change no product; cuDNN does not do odd head dimensions (124: 1.2x the step time). The
    scores are computed once per piece.
    """

    @functools.wraps(run)
    def fitted(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, sink: Tensor | None) -> Tensor:
        width, dim = v.shape[-1], q.shape[-1]
        dim = max(dim + -dim % ALIGNED, LEAST) if q.is_cuda else dim
        if width == dim == q.shape[-1]:
            return run(q, k, v, mask, scale, sink)
        q, k, v = (_padded(x, dim) for x in (q, k, v))
        pieces = v.split(dim, dim=-1)
        return torch.cat([run(q, k, piece, mask, scale, sink) for piece in pieces], dim=-1)[..., :width]

    return fitted


def _flex_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it is slow without a CUDA device"
    if request.q_len != request.k_len:
        return "it is compiled for whole sequences, not for cached decoding"
    return "" if request.masked or request.sink else "without window, documents or sinks SDPA is faster"


def _ring(q: Tensor, k: Tensor, v: Tensor, where: ring.Places, scale: float, sink: Tensor | None) -> Tensor:
    """Places that are reused: cached decoding under a CUDA graph (lit_gpt.evals.steps)."""
    if sink is None and ring.runs(q.device, q.dtype, q.shape[-1]):
        return ring.flash(q, k, v, where, scale)
    return _plain(q, k, v, where.mask(k.shape[1]), scale, sink)


BACKENDS: dict[str, Backend] = {
    "fa3": Backend(_fitted(flash.fa3), partial(flash.refuses, "fa3")),
    "fa4": Backend(_fitted(flash.fa4), partial(flash.refuses, "fa4")),  # see _in_training
    "flex": Backend(_fitted(_flex), _flex_refuses),
    "banded": Backend(_fitted(_banded), _banded_refuses),
    "sdpa": Backend(_fitted(_sdpa), lambda r: "it has no sinks" if r.sink else ""),
    "fa2": Backend(_fitted(flash.fa2), partial(flash.refuses, "fa2")),
    "ring": Backend(_ring, lambda r: "it is for steps of cached decoding, which ask for it themselves"),
    "plain": Backend(_plain, lambda r: ""),
}
WITHOUT_FA4 = {name: row for name, row in BACKENDS.items() if name != "fa4"}
