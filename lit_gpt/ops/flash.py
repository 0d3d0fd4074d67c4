"""FlashAttention 2, 3 and 4 as attention backends, where their packages are installed.

Windows and documents are part of these kernels: nothing is masked that could be skipped. Under torch.compile a call of
2 or 3 is a graph break; 4 is an operation of its own, see flash4.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.ops import flash4
from lit_gpt.ops.backends import missing, optional
from lit_gpt.ops.masks import Request

# Backend -> its module, and the major compute capabilities that it has both passes for. Not "flash_attn" for the
# first: that is there with FlashAttention 4 alone, too.
LIBRARIES = {
    "fa2": ("flash_attn.flash_attn_interface", (8, 9, 10, 12)),
    "fa3": ("flash_attn_interface", (9,)),
    "fa4": (flash4.MODULE, (9, 10, 11, 12)),
}


class Visible(NamedTuple):
    """window: tokens a query sees, None for all. offsets: cu_seqlens, None without documents."""

    window: int | None
    offsets: Tensor | None


def refuses(name: str, request: Request) -> str:
    """Why a FlashAttention does not do a request, or ""."""
    module, majors = LIBRARIES[name]
    if request.device != "cuda":
        return "it needs a CUDA device"
    if reason := missing(module):
        return reason
    if (major := torch.cuda.get_device_capability()[0]) not in majors:
        return f"it is not made for compute capability {major}.x"
    if request.dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bf16 and fp16 only"
    if request.sink:
        return "it has no sinks"
    if name == "fa4" and (reason := flash4.refuses(request.dim, major)):
        return reason
    if request.documents and request.q_len != request.k_len:
        return "it keeps documents apart in whole sequences, not in cached decoding"
    return "it needs cu_seqlens" if request.documents and not request.offsets else ""


def fa2(q: Tensor, k: Tensor, v: Tensor, mask: Visible, scale: float, sink: Tensor | None) -> Tensor:
    """FlashAttention-2 (arXiv:2307.08691): Ampere and later."""
    return _run("fa2", q, k, v, mask, scale)


def fa3(q: Tensor, k: Tensor, v: Tensor, mask: Visible, scale: float, sink: Tensor | None) -> Tensor:
    """FlashAttention-3 (arXiv:2407.08608): Hopper."""
    return _run("fa3", q, k, v, mask, scale)


def fa4(q: Tensor, k: Tensor, v: Tensor, mask: Visible, scale: float, sink: Tensor | None) -> Tensor:
    """FlashAttention-4 (CuTe): Hopper and Blackwell."""
    return flash4.attend(q, k, v, mask.offsets, mask.window, scale)


# Dynamo cannot trace these packages' entry points; the block continues compiled after the call.
@torch.compiler.disable()
def _run(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Visible, scale: float) -> Tensor:
    """Dense kernels for whole rows; those for packed rows, of the rows laid end to end, for documents."""
    library: Any = optional(LIBRARIES[name][0])
    options: dict[str, Any] = {
        "softmax_scale": scale,
        "causal": True,
        # Tokens to the left and right of the query, itself not counted; -1 is no limit.
        "window_size": (-1, -1) if mask.window is None else (mask.window - 1, 0),
        # The backward pass adds up gradients of the queries in any order unless asked not to.
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if mask.offsets is None:
        y = library.flash_attn_func(q, k, v, **options)
    else:
        # The longest document is not known without waiting for the device; a row is no shorter.
        sizes = {"cu_seqlens_q": mask.offsets, "cu_seqlens_k": mask.offsets}
        sizes |= {"max_seqlen_q": q.shape[1], "max_seqlen_k": k.shape[1]}
        y = library.flash_attn_varlen_func(*(x.flatten(0, 1) for x in (q, k, v)), **sizes, **options)
    y = y if isinstance(y, Tensor) else y[0]  # some versions return the softmax's log-sum too
    return y.reshape(*q.shape[:-1], v.shape[-1])
