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

from lit_gpt.ops import experts_quack
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.expert_activation import activate, activation_gradients
from lit_gpt.ops.expert_rows import rows_of_pairs
from lit_gpt.ops.grouped_gemm import grouped_mm


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


def sort_pairs(experts_TK: Tensor, count: int) -> Routes:
    """Routes of a choice of experts out of `count`; each expert's tokens stay in order."""
    # As int32 there are half as many bytes to sort. Stable, so that an expert's rows are in the order of the tokens.
    sorted_P, order_P = experts_TK.flatten().int().sort(stable=True)
    index_P = torch.arange(len(order_P), device=order_P.device)
    # The inverse of a permutation by one scatter; a second sort would cost as much as the first.
    place_P = torch.empty_like(order_P).scatter_(0, order_P, index_P)
    experts_E = torch.arange(count, device=order_P.device, dtype=torch.int32)
    ends_E = torch.searchsorted(sorted_P, experts_E, right=True, out_int32=True)
    return Routes(order_P, place_P, ends_E)


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
    sinks: tuple[Tensor, ...] = (),
) -> Tensor:
    """The formula at the top of the file; (T, D) in x's dtype, differentiable in the first four arguments.

    gates in at least fp32, weights are cast to x's dtype. backend: of ops.grouped_gemm. compiled: both
    passes, which they are in a compiled model anyway. sinks: two tensors of the shapes of up and down, in x's dtype,
    that get their gradients in their place; nothing else is read of them.
    """
    compiled = compiled or torch.compiler.is_compiling()
    order_P, place_P, ends_E, largest = routes
    # Made here and in 32 bits: a compiler would divide again for each number of a row that it gathers, in 64 bits.
    indices = order_P, (order_P // gates_TK.shape[1]).int(), place_P.int()
    options = ends_E, largest, kind, backend, compiled, *(sinks or (None, None))
    return _Experts.apply(x_TD, gates_TK, up_EHD, down_EDI, *indices, *options)  # type: ignore[return-value]


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
    token_P: Tensor,
    place_P: Tensor,
    ends_E: Tensor,
    largest: int | None,
    kind: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(y_TD, h_PH). token_P: the token of each pair, in int32, as place_P."""
    (tokens, k), up_EHD, down_EDI = gates_TK.shape, up_EHD.to(x_TD.dtype), down_EDI.to(x_TD.dtype)
    if experts_quack.does(x_TD, down_EDI, kind, backend):
        out_PD, h_PH = experts_quack.forward(x_TD, up_EHD, down_EDI, token_P, ends_E)
    else:
        options = {"largest": largest, "backend": backend}
        h_PH = grouped_mm(rows_of_pairs(x_TD, token_P, place_P), up_EHD.mT, ends_E, **options)
        out_PD = grouped_mm(activate(kind, h_PH), down_EDI.mT, ends_E, **options)
    return sum_rows(out_PD, place_P.view(tokens, k), gates_TK).to(x_TD.dtype), h_PH


def _backward(
    dy_TD: Tensor,
    h_PH: Tensor,
    x_TD: Tensor,
    gates_TK: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    order_P: Tensor,
    token_P: Tensor,
    place_P: Tensor,
    ends_E: Tensor,
    largest: int | None,
    kind: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, gates, up and down, the last two in x's dtype."""
    dtype, (tokens, k), options = x_TD.dtype, gates_TK.shape, {"largest": largest, "backend": backend}
    gates_P = gates_TK.flatten()[order_P]
    if experts_quack.does(x_TD, down_EDI, kind, backend):
        weights = up_EHD.to(dtype), down_EDI.to(dtype)
        dx_PD, d_gates_P, d_up, d_down = experts_quack.backward(dy_TD, h_PH, x_TD, gates_P, *weights, token_P, ends_E)
        dx_TD = sum_rows(dx_PD, place_P.view(tokens, k)).to(dtype)
    else:
        dy_PD = rows_of_pairs(dy_TD, token_P, place_P)
        # Without the gates: the gradient of a gate is the product of this with the activations, and the gradient of the
        # activations is this times the gate. One matrix product serves both.
        da_PI = grouped_mm(dy_PD, down_EDI.to(dtype), ends_E, **options)
        dh_PH, scaled_PI, d_gates_P = activation_gradients(kind, h_PH, da_PI, gates_P)
        d_down = grouped_mm(dy_PD.mT, scaled_PI, ends_E, **options)
        del dy_PD, da_PI, scaled_PI  # where nothing is compiled they would lie beside the rest
        dx_TD = sum_rows(grouped_mm(dh_PH, up_EHD.to(dtype), ends_E, **options), place_P.view(tokens, k)).to(dtype)
        # Last, so that the rows of x do not exist beside those of another gradient.
        d_up = grouped_mm(dh_PH.mT, rows_of_pairs(x_TD, token_P, place_P), ends_E, **options)
    d_gates_TK = d_gates_P[place_P].view(tokens, k).to(gates_TK.dtype)
    return dx_TD, d_gates_TK, d_up, d_down


# Inside a compiled model both are one operation each, compiled by itself: a compiler that saw through them would keep
# the gathered rows and the cast weights of the forward pass for the backward pass, k times the activations.


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # In the order of the source. Inductor would move what only the caller reads, d_down, behind all else, and rows of
    # both gradients would exist at once: 640 MiB of 3.1 GiB in a layer of d16 with micro-batch 8 (torch 2.11).
    return torch.compile(function, options={"reorder_for_locality": False})


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
    d_weights = (torch.empty_like(w, dtype=x_TD.dtype) for w in (up_EHD, down_EDI))
    return torch.empty_like(x_TD), torch.empty_like(gates_TK), *d_weights  # type: ignore[return-value]


class _Experts(torch.autograd.Function):
    """expert_ffn; see the module for what backward keeps."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *inputs, compiled, sink, _ = arguments
        y_TD, h_PH = (_forward_op if compiled else _forward)(*inputs)
        ctx.save_for_backward(h_PH, *inputs[:8])
        ctx.options, ctx.compiled, ctx.sunk, ctx.dtype = inputs[8:], compiled, sink is not None, inputs[2].dtype
        return y_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: Callable[..., Any] = _backward_op if ctx.compiled else _backward
        dx_TD, d_gates_TK, *d_weights = run(*grads, *ctx.saved_tensors, *ctx.options)
        if ctx.sunk:
            return dx_TD, d_gates_TK, *[None] * 10, *d_weights
        return dx_TD, d_gates_TK, *(d.to(ctx.dtype) for d in d_weights), *[None] * 10
