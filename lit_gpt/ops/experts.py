"""Experts on the tokens that chose them: gather, two grouped matrix products, weighted sum.

    y_TD = expert_ffn(x_TD, gates_TK, up_EHD, down_EDI, routes, kind="swiglu")
    y_t = sum_j gates_tj down_e act(up_e x_t),  e the j-th expert of token t

Backward keeps x, the gates and the up projection's output, and nothing else of the size of the pairs:
rows are gathered again, and the gradient of a gate is a product in the hidden width,
d g = <down^T dy, act(h)>, so no expert's output is kept (arXiv:2512.14080). With I = 4 n / k a pair's
hidden activations are k times narrower than a dense network's, so what is kept does not grow with k.

Shapes: T tokens, D model width, E experts, K experts per token, P = T K pairs sorted by expert,
I hidden width of an expert, H rows of its up projection (2 I for the gated kinds).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.grouped_gemm import grouped_mm

# GPT-OSS (arXiv:2508.10925 and its code): clamp of gate and up; slope of its sigmoid, with which x sigmoid(1.702 x)
# is close to GELU (arXiv:1606.08415, section 2).
OSS_LIMIT, OSS_ALPHA = 7.0, 1.702
MAPS = {"swiglu": 2, "oss_swiglu": 2, "relu2": 1}  # kind -> maps in the up projection, the gate first


class Routes(NamedTuple):
    """Where the pairs of token and expert lie.

    order_P: place in expert order -> pair t K + j. place_P: its inverse. ends_E: int32, where each
    expert's rows end. largest: the most rows that an expert serves, where the host knows; later rows
    must have gate 0.
    """

    order_P: Tensor
    place_P: Tensor
    ends_E: Tensor
    largest: int | None = None


def sort_pairs(experts_TK: Tensor, count: int, largest: int | None = None) -> Routes:
    """Routes of a choice of experts out of `count`; each expert's tokens stay in order."""
    # As int32 there are half as many bytes to sort. Stable, so that an expert's rows are in the order of the tokens.
    sorted_P, order_P = experts_TK.flatten().int().sort(stable=True)
    index_P = torch.arange(len(order_P), device=order_P.device)
    # The inverse of a permutation by one scatter; a second sort would cost as much as the first.
    place_P = torch.empty_like(order_P).scatter_(0, order_P, index_P)
    experts_E = torch.arange(count, device=order_P.device, dtype=torch.int32)
    ends_E = torch.searchsorted(sorted_P, experts_E, right=True, out_int32=True)
    return Routes(order_P, place_P, ends_E, largest)


def expert_ffn(
    x_TD: Tensor,
    gates_TK: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    routes: Routes,
    *,
    kind: str = "swiglu",
    backend: str = "auto",
    compiled: bool = False,
) -> Tensor:
    """The formula at the top of the file; (T, D) in x's dtype, differentiable in the first four arguments.

    gates in at least fp32, weights are cast to x's dtype. backend: of ops.grouped_gemm. compiled: both
    passes, which they are in a compiled model anyway.
    """
    compiled = compiled or torch.compiler.is_compiling()
    return _Experts.apply(x_TD, gates_TK, up_EHD, down_EDI, *routes, kind, backend, compiled)  # type: ignore[return-value]


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


def sum_rows(rows_PD: Tensor, place_TK: Tensor, gates_TK: Tensor | None = None) -> Tensor:
    """sum_j gates_tj rows[place_tj], (T, D) in at least fp32.

    Term by term: a compiler makes one pass of it that reads every row once. A sum over a dimension of K
    became a kernel that took three times as long.
    """
    total = None
    for j in range(place_TK.shape[1]):
        term = upcast(rows_PD[place_TK[:, j]])
        term = term if gates_TK is None else gates_TK[:, j, None] * term
        total = term if total is None else total + term
    assert total is not None
    return total


def _forward(
    x_TD: Tensor,
    gates_TK: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    order_P: Tensor,
    place_P: Tensor,
    ends_E: Tensor,
    largest: int | None,
    kind: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(y_TD, h_PH)."""
    dtype, (tokens, k), options = x_TD.dtype, gates_TK.shape, {"largest": largest, "backend": backend}
    h_PH = grouped_mm(x_TD[order_P // k], up_EHD.to(dtype).mT, ends_E, **options)
    out_PD = grouped_mm(activate(kind, h_PH), down_EDI.to(dtype).mT, ends_E, **options)
    return sum_rows(out_PD, place_P.view(tokens, k), gates_TK).to(dtype), h_PH


def _backward(
    dy_TD: Tensor,
    h_PH: Tensor,
    x_TD: Tensor,
    gates_TK: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    order_P: Tensor,
    place_P: Tensor,
    ends_E: Tensor,
    largest: int | None,
    kind: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, gates, up and down."""
    dtype, (tokens, k), options = x_TD.dtype, gates_TK.shape, {"largest": largest, "backend": backend}
    token_P = order_P // k
    dy_PD, a_PI = dy_TD[token_P], activate(kind, h_PH)
    # Without the gates: the gradient of a gate is the product of this with the activations, and the gradient of the
    # activations is this times the gate. One matrix product serves both.
    da_PI = grouped_mm(dy_PD, down_EDI.to(dtype), ends_E, **options)
    d_gates_P = (upcast(da_PI) * upcast(a_PI)).sum(-1)
    gates_P1 = gates_TK.flatten()[order_P][:, None]
    dh_PH = activate_backward(kind, h_PH, gates_P1 * da_PI)
    d_down = grouped_mm(dy_PD.mT, (gates_P1 * a_PI).to(dtype), ends_E, **options).to(down_EDI.dtype)
    d_up = grouped_mm(dh_PH.mT, x_TD[token_P], ends_E, **options).to(up_EHD.dtype)
    dx_PD = grouped_mm(dh_PH, up_EHD.to(dtype), ends_E, **options)
    dx_TD = sum_rows(dx_PD, place_P.view(tokens, k)).to(dtype)
    return dx_TD, d_gates_P[place_P].view(tokens, k).to(gates_TK.dtype), d_up, d_down


# Inside a compiled model both are one operation each, compiled by itself: a compiler that saw through them would keep
# the gathered rows and the cast weights of the forward pass for the backward pass, k times the activations.


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def operation(name: str, function: Callable[..., Any]) -> Any:
    """The function, compiled, as an operation with its signature."""

    @wraps(function)
    def run(*arguments: Any) -> Any:
        return _compiled(function)(*arguments)

    return torch.library.custom_op(name, run, mutates_args=())


_forward_op = operation("lit_gpt::experts", _forward)
_backward_op = operation("lit_gpt::experts_backward", _backward)


@_forward_op.register_fake
def _(x_TD: Tensor, gates_TK: Tensor, up_EHD: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_TD), x_TD.new_empty(gates_TK.numel(), up_EHD.shape[1])


@_backward_op.register_fake
def _(dy_TD: Tensor, h_PH: Tensor, *like: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_TD, gates_TK, up_EHD, down_EDI, *_ = like
    return torch.empty_like(x_TD), torch.empty_like(gates_TK), torch.empty_like(up_EHD), torch.empty_like(down_EDI)


class _Experts(torch.autograd.Function):
    """expert_ffn; see the module for what backward keeps."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *inputs, compiled = arguments
        y_TD, h_PH = (_forward_op if compiled else _forward)(*inputs)
        ctx.save_for_backward(h_PH, *inputs[:7])
        ctx.options, ctx.compiled = inputs[7:], compiled
        return y_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: Callable[..., Any] = _backward_op if ctx.compiled else _backward
        return *run(*grads, *ctx.saved_tensors, *ctx.options), None, None, None, None, None, None, None
