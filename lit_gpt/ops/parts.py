"""y = x W^T with the digits of fp32, of an x in bf16 and a W in fp32, by products in bf16.

    W = W1 + W2 + W3    each in bf16, of 8 significant bits, and together the 24 of fp32: the sum is exact
    x W^T = x W1^T + x W2^T + x W3^T

A product of two bf16 numbers has 16 bits, which fp32 holds exactly, and tensor cores add up in fp32. So only the sums
are rounded, as in fp32 (Henry et al. 2019, arXiv:1904.06376, who split both sides). A GPU multiplies bf16 more than
ten times as fast as fp32, and the three products are one with three times the rows.

Shapes: N tokens, D width, E rows of W.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.dtypes import matmul_fp32, upcast

UPPER_HALF = -(2**16)  # of the bits of an fp32 number, which are those of a bf16 number


def linear_fp32(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """x W^T (N, E) in at least fp32, with a W in fp32. In parts where that pays: on a GPU, of bf16."""
    if x_ND.is_cuda and x_ND.dtype == torch.bfloat16 and weight_ED.dtype == torch.float32:
        return in_parts(x_ND, weight_ED)
    return F.linear(upcast(x_ND), weight_ED.to(upcast(x_ND[:0]).dtype))


def in_parts(x_ND: Tensor, weight_ED: Tensor) -> Tensor:
    """x W^T (N, E) in fp32, of an x in bf16 and a W in fp32."""
    return _InParts.apply(x_ND, weight_ED)  # type: ignore[return-value]


def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three tensors in bf16 whose sum is x, in fp32.

    Cut off and not rounded: by bits, since compilers take `x - x.bfloat16().float()` for zero (torch 2.13).
    """
    first = _cut(x)
    second = _cut(x - first)
    return first.bfloat16(), second.bfloat16(), (x - first - second).bfloat16()


def _cut(x: Tensor) -> Tensor:
    return (x.view(torch.int32) & UPPER_HALF).view(torch.float32)


class _InParts(torch.autograd.Function):
    """in_parts; backward keeps what is given."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_ND, weight_ED)
        first, second, third = matmul_fp32(x_ND, torch.cat(split(weight_ED)).T).chunk(3, dim=1)
        return third + second + first  # the smallest first

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_ND, weight_ED = ctx.saved_tensors
        g1, g2, g3 = split(grads[0])
        w1, w2, _ = split(weight_ED)
        # 16 bits of either side are enough for a gradient that is rounded to the 8 of bf16.
        dx_ND = torch.cat([g1, g2, g1], dim=1) @ torch.cat([w1, w1, w2])
        first, second, third = matmul_fp32(torch.cat([g1, g2, g3], dim=1).T, x_ND).chunk(3)
        return dx_ND, third + second + first
