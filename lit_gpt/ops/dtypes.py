"""Where precision is raised: one rule for every op. When a cast of weights is out of date: another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """x in at least fp32: half precisions are raised, fp32 and fp64 stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def matmul_fp32(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """a @ b with an (at least) fp32 result that never was rounded to half precision.

    Not differentiable for half precisions on CUDA: for use inside an autograd.Function.
    """
    # cuBLAS accumulates in fp32 and would round once at the end; out_dtype hands out the sums themselves.
    if a_MK.is_cuda and a_MK.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a_MK, b_KN, out_dtype=torch.float32)
    return upcast(a_MK) @ upcast(b_KN)


def version(weights: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    """What is another value once an optimizer or a load has written one of the weights (optim counts its steps)."""
    return tuple((w._version, w.data_ptr()) for w in weights)
