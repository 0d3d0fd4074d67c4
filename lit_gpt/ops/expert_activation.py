"""The activation inside an expert and its gradients: plain torch, and one Triton kernel for the backward pass.

A pair of a token and an expert with gate g gives g down a, a = act(h). Of da, the gradient of g down a without the
gate, follow the gradient of h, g da act'(h); what the gradient of `down` is made with, g a; and the gradient of the
gate, <da, a>. The kernel makes all three of them in one pass over h and da. A compiler makes the two halves of a gated
kind's gradient in a kernel of twice the width, which reads both once for each, and the rest in another.

Shapes: P pairs, I hidden width of an expert, H rows of its up projection (2 I for the gated kinds).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.backends import missing, optional
from lit_gpt.ops.dtypes import upcast

# GPT-OSS (arXiv:2508.10925 and its code): clamp of gate and up; slope of its sigmoid, with which x sigmoid(1.702 x)
# is close to GELU (arXiv:1606.08415, section 2).
OSS_LIMIT, OSS_ALPHA = 7.0, 1.702
MAPS = {"swiglu": 2, "oss_swiglu": 2, "relu2": 1}  # kind -> maps in the up projection, the gate first
WIDEST = 1024  # columns at a time: 8 numbers for each thread of 4 warps, whose loads are 16 bytes


def activate(kind: str, h_PH: Tensor) -> Tensor:
    """(P, H) -> (P, I), in h's dtype; the kinds are those of nn.mlp."""
    if kind == "relu2":
        return F.relu(h_PH).square()
    gate, up = h_PH.chunk(2, dim=-1)
    if kind == "swiglu":
        return F.silu(gate) * up
    gate, up = gate.clamp(max=OSS_LIMIT), up.clamp(-OSS_LIMIT, OSS_LIMIT)
    return gate * torch.sigmoid(OSS_ALPHA * gate) * (up + 1)


def activate_backward(kind: str, h_PH: Tensor, da_PI: Tensor) -> Tensor:
    """The gradient of h from that of activate(kind, h), computed in at least fp32."""
    h, da = upcast(h_PH), upcast(da_PI)
    if kind == "relu2":
        return (2 * F.relu(h) * da).to(h_PH.dtype)
    gate, up = h.chunk(2, dim=-1)
    oss = kind == "oss_swiglu"
    g, u, slope = (gate.clamp(max=OSS_LIMIT), up.clamp(-OSS_LIMIT, OSS_LIMIT), OSS_ALPHA) if oss else (gate, up, 1.0)
    s = torch.sigmoid(slope * g)  # d/dg of g s is s (1 + slope g (1 - s)); oss, a bool, is the 1 in (u + 1)
    d_gate = da * (u + oss) * s * (1 + slope * g * (1 - s))
    d_up = da * g * s
    if oss:
        d_gate, d_up = d_gate * (gate <= OSS_LIMIT), d_up * (up.abs() <= OSS_LIMIT)
    return torch.cat([d_gate, d_up], dim=-1).to(h_PH.dtype)


def activation_gradients(kind: str, h_PH: Tensor, da_PI: Tensor, gates_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(the gradient of h (P, H), the activations times their gates (P, I), the gradient of the gates (P,)).

    The first two are in h's dtype, the last is in at least fp32. da_PI: see the top of the file.
    """
    if h_PH.is_cuda and h_PH.dtype == torch.bfloat16 and MAPS[kind] == 2 and not missing("triton"):
        return _in_one_pass(h_PH, da_PI, gates_P, kind == "oss_swiglu")
    a_PI, gates_P1 = activate(kind, h_PH), gates_P[:, None]
    d_gates_P = (upcast(da_PI) * upcast(a_PI)).sum(-1)
    return activate_backward(kind, h_PH, gates_P1 * da_PI), (gates_P1 * a_PI).to(h_PH.dtype), d_gates_P


@torch.library.custom_op("lit_gpt::activation_gradients", mutates_args=())
def _in_one_pass(h_PH: Tensor, da_PI: Tensor, gates_P: Tensor, oss: bool) -> tuple[Tensor, Tensor, Tensor]:
    pairs, inner = da_PI.shape
    h_PH, da_PI, gates_P = h_PH.contiguous(), da_PI.contiguous(), gates_P.contiguous()
    dh_PH, scaled_PI, d_gates_P = torch.empty_like(h_PH), torch.empty_like(da_PI), torch.empty_like(gates_P)
    if pairs:
        width = min(1 << (inner - 1).bit_length(), WIDEST)
        constants = {"OSS": oss, "LIMIT": OSS_LIMIT, "ALPHA": OSS_ALPHA if oss else 1.0, "WIDTH": width}
        tensors = h_PH, da_PI, gates_P, dh_PH, scaled_PI, d_gates_P
        backward_kernel()[(pairs,)](*tensors, inner, **constants, num_warps=max(width // 256, 1))
    return dh_PH, scaled_PI, d_gates_P


@_in_one_pass.register_fake
def _(h_PH: Tensor, da_PI: Tensor, gates_P: Tensor, oss: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(h_PH), torch.empty_like(da_PI), torch.empty_like(gates_P)


@cache
def backward_kernel() -> Any:
    """The kernel; made at the first call, since Triton is only there with CUDA."""
    triton, tl = optional("triton"), optional("triton.language")

    @triton.jit
    def kernel(
        h,
        da,
        gates,
        dh,
        scaled,
        d_gates,
        inner,
        OSS: tl.constexpr,  # type: ignore
        LIMIT: tl.constexpr,  # type: ignore
        ALPHA: tl.constexpr,  # type: ignore
        WIDTH: tl.constexpr,  # type: ignore
    ):
        """One pair; names as in activate_backward."""
        pair = tl.program_id(0).to(tl.int64)
        weight = tl.load(gates + pair).to(tl.float32)
        total = tl.zeros([WIDTH], dtype=tl.float32)
        for start in range(0, inner, WIDTH):
            i = start + tl.arange(0, WIDTH)
            inside = i < inner
            gate_at, up_at, at = pair * 2 * inner + i, pair * 2 * inner + inner + i, pair * inner + i
            gate = tl.load(h + gate_at, mask=inside, other=0.0).to(tl.float32)
            up = tl.load(h + up_at, mask=inside, other=0.0).to(tl.float32)
            d = tl.load(da + at, mask=inside, other=0.0).to(tl.float32)
            g = gate
            u = up
            factor = up
            if OSS:
                # A comparison with NaN is false: it stays, as in torch's clamp.
                g = tl.where(gate > LIMIT, LIMIT, gate)
                u = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up))
                factor = u + 1.0
            s = tl.sigmoid(ALPHA * g)
            a = g * s * factor
            total += d * a
            d *= weight
            d_gate = d * factor * s * (1.0 + ALPHA * g * (1.0 - s))
            d_up = d * g * s
            if OSS:
                d_gate = tl.where(gate <= LIMIT, d_gate, 0.0)
                d_up = tl.where((up <= LIMIT) & (up >= -LIMIT), d_up, 0.0)
            tl.store(dh + gate_at, d_gate.to(dh.dtype.element_ty), mask=inside)
            tl.store(dh + up_at, d_up.to(dh.dtype.element_ty), mask=inside)
            tl.store(scaled + at, (weight * a).to(scaled.dtype.element_ty), mask=inside)
        tl.store(d_gates + pair, tl.sum(total, axis=0).to(d_gates.dtype.element_ty))

    return kernel
