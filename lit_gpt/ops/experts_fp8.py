"""Experts that multiply in 8 bits: ops/experts.py with the operands of ops/fp8.py, by groups of rows.

torch multiplies groups of rows in 8 bits with one scale for every row of either operand, in e4m3 (its kernel for
Hopper, ScaledGroupMM.cu in torch 2.11 to 2.14). So experts train by "rowwise" under "tensorwise", too. Sums over the
hidden width take any number of rows. The gradient of a weight is a sum over its expert's rows; there the kernel wants
a multiple of 16 of them, and at least one: `padded` gives each expert rows of zeros up to that, without a wait for the
sizes. Their scales are those of whole columns, over all experts, as the dense recipe has them over all tokens.

Backward keeps what it keeps in bf16: x, the gates and the up projection's output. It casts them anew.

Shapes: those of ops/experts.py; Q rows, the P pairs and the rows of zeros, in the order of experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_gpt.ops.expert_activation import MAPS, activate, activation_gradients
from lit_gpt.ops.experts import Routes, expert_ffn, operation, sum_rows
from lit_gpt.ops.fp8 import E4M3, RECIPES, Recipe, ScaledWeights, mx_values, quantise, scales_of
from lit_gpt.ops.fp8_cast import saturated
from lit_gpt.ops.grouped_gemm import grouped_mm

# Recipe of the dense maps -> that of experts; torchao's are for dense maps.
OF_EXPERTS = {"tensorwise": "rowwise", "rowwise": "rowwise", "mxfp8_emulated": "mxfp8_emulated"}
MOST_GROUPS = 1023  # of that kernel

Scaled = tuple[Tensor, Tensor]  # numbers in 8 bits for sums over their last dimension, and their scales


def refusal(name: str, experts: int) -> str:
    """Why experts cannot train in 8 bits by a recipe on this machine, or ""."""
    if name not in OF_EXPERTS:
        return f"{name} is for dense maps"
    if not torch.cuda.is_available() or OF_EXPERTS[name] == "mxfp8_emulated":
        return ""
    if not hasattr(torch, "_scaled_grouped_mm"):
        return "this torch has no grouped products in 8 bits"
    if (capability := torch.cuda.get_device_capability())[0] != 9:
        return f"torch has grouped products in 8 bits for compute capability 9.0, and this GPU has {capability}"
    return f"{experts} experts are more than {MOST_GROUPS}" if experts > MOST_GROUPS else ""


class ScaledExperts(ScaledWeights):
    """The weights of one layer's experts, up (E, H, D) and down (E, D, I), in 8 bits.

    kept: as in ScaledWeights; it takes two bytes for every weight.
    """

    def __init__(self, name: str, kept: bool = True):
        super().__init__(OF_EXPERTS[name], kept)
        self.operands: list[Tensor] = []

    def cast(self, weights: Sequence[Tensor]) -> None:
        """See ScaledWeights.refresh."""
        self.operands = []  # its memory serves for the next ones
        run: Any = _cast_weight_op if weights[0].is_cuda else _cast_weight
        self.operands = [t for w in weights for t in run(w, self.name)]


def scaled_expert_ffn(
    x_TD: Tensor,
    gates_TK: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    routes: Routes,
    *,
    scaled: ScaledExperts,
    kind: str = "swiglu",
    backend: str = "auto",
    compiled: bool = False,
) -> Tensor:
    """ops.experts.expert_ffn by the recipe of `scaled`; backend is for mxfp8_emulated, which multiplies in bf16."""
    compiled = compiled or torch.compiler.is_compiling()
    if 0 in (*gates_TK.shape, len(up_EHD)):
        return expert_ffn(x_TD, gates_TK, up_EHD, down_EDI, routes, kind=kind, backend=backend, compiled=compiled)
    assert scaled.kept == (len(scaled.operands) > 0), "the weights were not cast before the pass"
    given = scaled.operands if scaled.kept else (None,) * 8
    order_Q, place_P, ends_E, _ = padded(routes, RECIPES[scaled.name].multiple)
    # As in expert_ffn. Rows without a pair take the first token.
    token_Q = (order_Q.clamp(min=0) // gates_TK.shape[1]).int()
    indices, options = (order_Q, token_Q, place_P.int(), ends_E), (scaled.name, kind, backend, compiled)
    return _ScaledExperts.apply(x_TD, gates_TK, up_EHD, down_EDI, *indices, *given, *options)  # type: ignore[return-value]


def padded(routes: Routes, multiple: int) -> Routes:
    """Routes whose experts all have a positive multiple of rows. order_Q is -1 where a row belongs to no pair.

    There are as many rows as the most that could be needed, so that the host need not know; some lie after the last
    expert's.
    """
    ends_E, pairs = routes.ends_E, len(routes.order_P)
    lengths_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
    wide_E = (lengths_E.clamp(min=1) + (multiple - 1)) // multiple * multiple
    wide_ends_E = wide_E.cumsum(0, dtype=ends_E.dtype)
    moved_E = (wide_ends_E - wide_E) - (ends_E - lengths_E)
    index_P = torch.arange(pairs, device=ends_E.device)
    index_P = index_P + moved_E[torch.searchsorted(ends_E, index_P, right=True)]
    rows = (pairs // multiple + len(ends_E)) * multiple
    order_Q = routes.order_P.new_full((rows,), -1).scatter(0, index_P, routes.order_P)
    return Routes(order_Q, index_P[routes.place_P], wide_ends_E)


def over_last(x: Tensor, recipe: Recipe) -> Scaled:
    """x in 8 bits for sums over its last dimension, with a scale for each row; of MX values one scale of 1."""
    if recipe.shares == "block":
        return mx_values(x, E4M3), torch.ones(1, device=x.device)
    factor, scale = scales_of(torch.linalg.vector_norm(x, float("inf"), dim=-1), E4M3)
    return saturated(x.float() * factor[..., None], E4M3).contiguous(), scale


def _cast_weight(w_EMN: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An Operand of every expert: rows (E, M, N), cols (E, N, M)."""
    return *over_last(w_EMN, RECIPES[name]), *over_last(w_EMN.mT, RECIPES[name])


def grouped_product(a: Scaled, b: Scaled, ends_E: Tensor, dtype: torch.dtype, backend: str) -> Tensor:
    """Products of operands by groups, in dtype; ends_E as in ops.grouped_gemm.

    a (Q, K), b (E, N, K): (Q, N), rows of a group times its b^T. a (M, Q), b (N, Q): (E, M, N), sums over its rows.
    """
    (a8, scale_a), (b8, scale_b) = a, b
    if a8.device.type == "cpu":
        values_a, values_b = a8.float() * scale_a[..., None], b8.float() * scale_b[..., None]
        return grouped_mm(values_a, values_b.mT, ends_E, backend="plain").to(dtype)
    if a8.dtype == torch.bfloat16:  # the values of mx_values
        return grouped_mm(a8, b8.mT, ends_E, backend=backend).to(dtype)
    if b8.ndim == 2:  # every group has scales of its own there; these are the same for all
        scale_a, scale_b = scale_a.repeat(len(ends_E)), scale_b.repeat(len(ends_E))
    out, scales = torch.bfloat16, (scale_a, scale_b)  # of these products, all that there is
    return torch._scaled_grouped_mm(a8, b8.mT, *scales, offs=ends_E, out_dtype=out, use_fast_accum=True).to(dtype)


def _given(weight: list[Tensor], transposed: bool, recipe: Recipe) -> Scaled:
    """An operand's part, or that of a weight, cast here."""
    if len(weight) > 1:
        return weight[0], weight[1]
    return over_last(weight[0].mT if transposed else weight[0], recipe)


def _forward(
    x_TD: Tensor,
    gates_TK: Tensor,
    up: list[Tensor],
    down: list[Tensor],
    order_Q: Tensor,
    token_Q: Tensor,
    place_P: Tensor,
    ends_E: Tensor,
    name: str,
    kind: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """(y_TD, h_QH). up, down: rows of operands and their scales, or a weight to cast here."""
    recipe, dtype, (tokens, k) = RECIPES[name], x_TD.dtype, gates_TK.shape
    h_QH = grouped_product(over_last(x_TD[token_Q], recipe), _given(up, False, recipe), ends_E, dtype, backend)
    a_QI = over_last(activate(kind, h_QH), recipe)
    out_QD = grouped_product(a_QI, _given(down, False, recipe), ends_E, dtype, backend)
    return sum_rows(out_QD, place_P.view(tokens, k), gates_TK).to(dtype), h_QH


def _backward(
    dy_TD: Tensor,
    h_QH: Tensor,
    x_TD: Tensor,
    gates_TK: Tensor,
    order_Q: Tensor,
    token_Q: Tensor,
    place_P: Tensor,
    ends_E: Tensor,
    up: list[Tensor],
    down: list[Tensor],
    name: str,
    kind: str,
    backend: str,
    weight_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, gates, up and down. up, down: cols of operands and their scales, or a weight to cast here."""
    recipe, dtype, (tokens, k) = RECIPES[name], x_TD.dtype, gates_TK.shape
    real_Q1, gates_Q = (order_Q >= 0)[:, None], gates_TK.flatten()[order_Q.clamp(min=0)]

    def operand(values: Tensor) -> tuple[Scaled, Scaled]:
        # What products left in rows after the last expert's is undefined, and a largest magnitude would see it.
        rows, row_scale, cols, col_scale = quantise([torch.where(real_Q1, values, 0).to(dtype)], E4M3, recipe)
        return (rows, row_scale), (cols, col_scale)

    # As in experts._backward: without the gates, so that one product serves the activations and the gates.
    dy_rows, dy_cols = operand(dy_TD[token_Q])
    da_QI = grouped_product(dy_rows, _given(down, True, recipe), ends_E, dtype, backend)
    dh_QH, weighted_QI, d_gates_Q = activation_gradients(kind, h_QH, da_QI, gates_Q)
    dh_rows, dh_cols = operand(dh_QH)
    d_down = grouped_product(dy_cols, operand(weighted_QI)[1], ends_E, weight_dtype, backend)
    d_up = grouped_product(dh_cols, operand(x_TD[token_Q])[1], ends_E, weight_dtype, backend)
    dx_QD = grouped_product(dh_rows, _given(up, True, recipe), ends_E, dtype, backend)
    dx_TD = sum_rows(dx_QD, place_P.view(tokens, k)).to(dtype)
    return dx_TD, d_gates_Q[place_P].view(tokens, k).to(gates_TK.dtype), d_up, d_down


# One operation each in a compiled model, as in ops/experts.py.
_cast_weight_op = operation("lit_gpt::cast_experts", _cast_weight)
_forward_op = operation("lit_gpt::scaled_experts", _forward)
_backward_op = operation("lit_gpt::scaled_experts_backward", _backward)


@_forward_op.register_fake
def _(
    x_TD: Tensor, gates_TK: Tensor, up: list[Tensor], down: list[Tensor], order_Q: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x_TD), x_TD.new_empty(len(order_Q), up[0].shape[1])


@_backward_op.register_fake
def _(
    dy_TD: Tensor, h_QH: Tensor, x_TD: Tensor, gates_TK: Tensor, order_Q: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ends_E, dtype, width, hidden = rest[2], rest[-1], x_TD.shape[1], h_QH.shape[1]
    sizes = (hidden, width), (width, hidden // MAPS[rest[6]])
    up, down = (x_TD.new_empty(len(ends_E), *size, dtype=dtype) for size in sizes)
    return torch.empty_like(x_TD), torch.empty_like(gates_TK), up, down


class _ScaledExperts(torch.autograd.Function):
    """scaled_expert_ffn; given: the tensors of both Operands, or None to cast the weights here, twice."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, gates_TK: Tensor, up: Tensor, down: Tensor, *arguments: Any) -> Tensor:
        routes, given, (*options, compiled) = arguments[:4], arguments[4:12], arguments[12:]
        ctx.kept = given[0] is not None
        rows = (list(given[:2]), list(given[4:6])) if ctx.kept else ([up], [down])
        y_TD, h_QH = (_forward_op if compiled else _forward)(x_TD, gates_TK, *rows, *routes, *options)
        ctx.save_for_backward(h_QH, x_TD, gates_TK, *routes, *((*given[2:4], *given[6:]) if ctx.kept else (up, down)))
        ctx.options, ctx.compiled, ctx.dtype = options, compiled, up.dtype
        return y_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        run: Callable[..., Any] = _backward_op if ctx.compiled else _backward
        saved, weights = ctx.saved_tensors[:7], list(ctx.saved_tensors[7:])
        up, down = (weights[:2], weights[2:]) if ctx.kept else (weights[:1], weights[1:])
        return *run(*grads, *saved, up, down, *ctx.options, ctx.dtype), *(None,) * 16
