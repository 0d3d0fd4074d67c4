"""Matrix products with operands of 8 bits: scales, casts, the product, and its gradients.

A format of 8 bits reaches over few powers of two, so a tensor is scaled before it is cast, and the product is scaled
back. A recipe says how many numbers share a scale:

    tensorwise      one scale for a tensor: its largest magnitude becomes the format's largest number. e4m3 for
                    activations and weights, e5m2 for gradients, which differ more in size (arXiv:2209.05433).
    rowwise         one scale for every row of an operand, along the dimension that is summed over; e4m3 throughout.
    mxfp8_emulated  one power of two for 32 numbers along that dimension, rounded up so that nothing overflows; e4m3
                    throughout (arXiv:2506.08027, section 3). Values are rounded to the format and multiplied in bf16,
                    which holds them exactly: it shows what training in MXFP8 does, and is no faster than bf16.

Each matrix takes part in two products, and the hardware wants both operands of a product with the summed dimension
last. So a matrix is cast once into two layouts (`Operand`), and y = x W^T, dx = dy W and dW = dy^T x are all the same
`product` of two of them. Backward keeps activations and weights in 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_gpt.ops.backends import optional
from lit_gpt.ops.dtypes import matmul_fp32, upcast, version
from lit_gpt.ops.fp8_cast import cast, saturated

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LEAST = 1e-12  # magnitudes below it are no larger under a scale, so that a matrix of zeros has one; as in torchao
MX_BLOCK = 32  # numbers that share a scale in the MX formats (OCP Microscaling Formats 1.0, section 5.2)


class Recipe(NamedTuple):
    """shares: what has one scale. gradients: their format. fast_backward: whether backward adds up its products with
    fewer bits, as forward does where the hardware can. multiple: of what the sizes of operands must be multiples.
    """

    shares: str
    gradients: torch.dtype
    fast_backward: bool
    multiple: int = 16  # cuBLAS: rows of whole 16 bytes
    library: str = ""  # a package's name of its own recipe, which casts and multiplies instead
    package: str = ""  # the module that has it


TORCHAO, ENGINE = "torchao.float8", "transformer_engine.pytorch"

RECIPES = {
    "tensorwise": Recipe("tensor", E5M2, fast_backward=False),
    # Its kernel is only fast with fast_accum, and its scales are finer; torchao's recipe of that name is the same.
    "rowwise": Recipe("row", E4M3, fast_backward=True),
    "mxfp8_emulated": Recipe("block", E4M3, fast_backward=False, multiple=MX_BLOCK),
    "torchao_tensorwise": Recipe("tensor", E5M2, fast_backward=False, library="tensorwise", package=TORCHAO),
    "torchao_rowwise": Recipe("row", E4M3, fast_backward=True, library="rowwise", package=TORCHAO),
    # Of TransformerEngine: ops/fp8_engine.py. Multiples are those of the numbers that share a scale, which it counts in
    # whole ones (its get_align_size_for_quantization has 128 for NVFP4).
    "te_current": Recipe("tensor", E5M2, fast_backward=False, library="Float8CurrentScaling", package=ENGINE),
    "te_block": Recipe("block", E4M3, False, multiple=128, library="Float8BlockScaling", package=ENGINE),
    "te_mxfp8": Recipe("block", E4M3, False, multiple=MX_BLOCK, library="MXFP8BlockScaling", package=ENGINE),
    "te_nvfp4": Recipe("block", E4M3, False, multiple=128, library="NVFP4BlockScaling", package=ENGINE),
}


def operand_itemsize(recipe: str) -> int:
    """Bytes of each number of an operand, in either layout; the emulation of MXFP8 has its values in bf16."""
    return 2 if RECIPES[recipe].shares == "block" else 1


class Operand(NamedTuple):
    """A matrix (M, N) in 8 bits, ready for sums over either dimension: rows (M, N), cols (N, M).

    The number that an entry stands for is the entry times its scale; scales have one entry, or one for every row.
    """

    rows: Tensor
    row_scale: Tensor
    cols: Tensor
    col_scale: Tensor


def quantise(pieces: Sequence[Tensor], dtype: torch.dtype, recipe: Recipe) -> Operand:
    """The operand of one matrix (M, N) that is given in pieces (M, N_i), which lie side by side."""
    if recipe.shares == "block":
        x_MN = torch.cat(list(pieces), dim=1)
        ones = torch.ones(2, device=x_MN.device).split(1)
        return Operand(mx_values(x_MN, dtype), ones[0], mx_values(x_MN.t(), dtype), ones[1])
    # Over rows first, and then over them all: a compiler joins the first sum with the kernel that makes the rows.
    amax_M = reduce(torch.maximum, [_amax(p, 1) for p in pieces])
    if recipe.shares == "row":
        amax_N = torch.cat([_amax(p, 0) for p in pieces])
    else:
        amax_M = amax_N = amax_M.amax().view(1)
    row_factor, row_scale = scales_of(amax_M, dtype)
    col_factor, col_scale = scales_of(amax_N, dtype)
    rows, cols = cast(list(pieces), row_factor, col_factor, dtype)
    return Operand(rows, row_scale, cols, col_scale)


def _amax(x: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(x, float("inf"), dim=dim)


def scales_of(amax: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(what numbers are multiplied with before the cast, and what undoes it), in fp32."""
    amax, largest = amax.float().clamp(min=LEAST), torch.finfo(dtype).max
    return largest / amax, amax / largest


def mx_values(x_MN: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to an MX format with blocks of 32 along the last dimension, in bf16, which holds the results exactly.

    The scale is the power of two at or above amax / largest: e8m0, from 2^-127 to 2^127 (arXiv:2506.08027, algorithm
    1). The rounding down of the OCP specification would cut off a block's largest numbers.
    """
    # For a CPU, torch's compiler joins the blocks of rows with those of columns and fails (2.13).
    return _mx_op(x_MN, dtype) if x_MN.device.type == "cpu" else _mx_values(x_MN, dtype)


def _mx_values(x_MN: Tensor, dtype: torch.dtype) -> Tensor:
    blocks = upcast(x_MN).unflatten(-1, (-1, MX_BLOCK))
    mantissa, exponent = torch.frexp(blocks.abs().amax(-1, keepdim=True) / torch.finfo(dtype).max)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent).clamp(-127, 127).to(blocks.dtype)
    values = upcast(saturated(blocks * torch.exp2(-exponent), dtype).to(torch.float32)) * torch.exp2(exponent)
    # An infinity or NaN spoils its block, so that the step is seen not to be finite.
    return torch.where(mantissa.isfinite(), values, torch.nan).flatten(-2).to(torch.bfloat16).contiguous()


_mx_op = torch.library.custom_op("lit_gpt::mx_values", _mx_values, mutates_args=())


@_mx_op.register_fake
def _(x_MN: Tensor, dtype: torch.dtype) -> Tensor:
    return x_MN.new_empty(x_MN.shape, dtype=torch.bfloat16)


def product(a_MK: Tensor, scale_a: Tensor, b_NK: Tensor, scale_b: Tensor, dtype: torch.dtype, fast: bool) -> Tensor:
    """a b^T (M, N) in dtype, of operands' rows or cols. fast: with sums of fewer bits, on a GPU."""
    if a_MK.dtype == torch.bfloat16:  # the values of mx_values
        return matmul_fp32(a_MK, b_NK.t()).to(dtype)
    if not a_MK.is_cuda:
        return (a_MK.float() @ b_NK.float().t() * scale_a.view(-1, 1) * scale_b).to(dtype)
    by_row = scale_a.numel() > 1
    scales = (scale_a.view(-1, 1), scale_b.view(1, -1)) if by_row else (scale_a, scale_b)
    out = torch.bfloat16 if by_row else dtype  # of row-wise products, all that there is
    return torch._scaled_mm(a_MK, b_NK.t(), *scales, out_dtype=out, use_fast_accum=fast).to(dtype)


def quantise_weights(weights: Sequence[Tensor], recipe: Recipe) -> Operand:
    """The operand of weights (N_i, K), one under the other."""
    # Pieces of an operand lie side by side, which these do once they are transposed.
    turned = quantise([w.t() for w in weights], E4M3, recipe)
    return Operand(turned.cols, turned.col_scale, turned.rows, turned.row_scale)


class _ScaledProduct(torch.autograd.Function):
    """Outputs (M, width) of x (M, K) and weights (N_i, K). operand: theirs, None to cast them here, twice."""

    @staticmethod
    def forward(ctx: Any, name: str, widths: list[int], x_MK: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        operand, weights, recipe = Operand(*rest[:4]), list(rest[4:]), RECIPES[name]
        ctx.kept = operand.rows is not None
        if not ctx.kept:
            # Not in the form of backward: a compiler would find that the two are one, and keep it from here to there.
            operand = quantise([torch.cat(weights) if len(weights) > 1 else weights[0]], E4M3, recipe)
        x = quantise([x_MK], E4M3, recipe)
        y_MN = product(x.rows, x.row_scale, operand.rows, operand.row_scale, x_MK.dtype, True)
        ctx.save_for_backward(x.cols, x.col_scale, *((operand.cols, operand.col_scale) if ctx.kept else weights))
        ctx.name, ctx.dtype = name, x_MK.dtype
        ctx.heights, ctx.weight_dtype = [w.shape[0] for w in weights], weights[0].dtype
        return y_MN.split(widths, dim=1)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x_cols, x_scale, *of_weights = ctx.saved_tensors
        recipe = RECIPES[ctx.name]
        w_cols, w_scale = of_weights if ctx.kept else quantise_weights(of_weights, recipe)[2:]
        dy = quantise(dys, recipe.gradients, recipe)
        dx = product(dy.rows, dy.row_scale, w_cols, w_scale, ctx.dtype, recipe.fast_backward)
        dw = product(dy.cols, dy.col_scale, x_cols, x_scale, ctx.weight_dtype, recipe.fast_backward)
        return None, None, dx, None, None, None, None, *dw.split(ctx.heights)


class ScaledWeights:
    """Products with weights that multiply one input together.

    kept: cast the weights when they have changed, and not in every pass. Under FSDP2 they are whole only during a
    pass, so nothing of them is kept, and what backward needs is cast again there.
    """

    def __init__(self, name: str, kept: bool = True):
        self.name, self.kept = name, kept
        self.operand: Operand | None = None
        self._version: tuple[tuple[int, int], ...] = ()

    @torch.no_grad()
    def refresh(self, weights: Sequence[Tensor]) -> None:
        """Cast the weights if an optimizer or a load has written them since the last time."""
        if self.kept and version(weights) != self._version:
            self.cast(weights)
            self._version = version(weights)

    def cast(self, weights: Sequence[Tensor]) -> None:
        """See refresh."""
        self.operand = None  # its memory serves for the next one
        self.operand = quantise_weights(weights, RECIPES[self.name])

    def products(self, x: Tensor, weights: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
        """x W^T for all the weights (N_i, K), one under the other, in pieces of these widths: (..., width) each."""
        operand = self.operand
        assert self.kept is (operand is not None), "the weights were not cast before the pass"
        # Else a group of maps was multiplied that is not one to nn.linear.together.
        assert operand is None or operand.rows.shape[0] == sum(widths) == sum(w.shape[0] for w in weights)
        given = (None,) * 4 if operand is None else operand
        ys = _ScaledProduct.apply(self.name, list(widths), x.reshape(-1, x.shape[-1]), *given, *weights)
        return [y.view(*x.shape[:-1], y.shape[-1]) for y in ys]


class TorchaoWeights:
    """The same by torchao's own casts and products, to compare with: those of its Float8Linear, without the module."""

    def __init__(self, name: str):
        float8 = optional(TORCHAO)
        config = float8.Float8LinearConfig.from_recipe_name(RECIPES[name].library)
        model = torch.nn.Sequential(torch.nn.Linear(MX_BLOCK, MX_BLOCK, bias=False, device="meta"))
        (linear,) = float8.convert_to_float8_training(model, config=config)
        self.options = linear.linear_mm_config, linear.config
        self.function = optional("torchao.float8.float8_linear").matmul_with_hp_or_float8_args

    def refresh(self, weights: Sequence[Tensor]) -> None:
        """Nothing: torchao casts weights in every pass."""

    def products(self, x: Tensor, weights: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
        """See ScaledWeights."""
        weight = torch.cat([w.to(x.dtype) for w in weights])
        return list(self.function.apply(x, weight.t(), *self.options).split(list(widths), dim=-1))
