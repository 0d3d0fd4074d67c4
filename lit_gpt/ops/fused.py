"""Elementwise chains as one GPU kernel where nothing else compiles them: in evaluation and generation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# Below this many numbers the kernels that one replaces take less time than a compiled call's checks of its arguments.
LARGE = 2**21


def fused(function: Callable[..., T]) -> Callable[..., T]:
    """The function, compiled for large CUDA tensors without gradients; its first argument decides.

    Training compiles whole blocks, these with them. Evaluation does not, since its lengths vary too much for that, and
    spent a third of its time between the matrix products of a depth-16 transformer (docs/evaluation.md).
    """

    @functools.wraps(function)
    def run(x: Tensor, *others: Any) -> T:
        eager = torch.compiler.is_compiling() or torch.is_grad_enabled() or not x.is_cuda or x.numel() < LARGE
        return function(x, *others) if eager else _compiled(function)(x, *others)

    return run


@functools.cache
def _compiled(function: Callable[..., T]) -> Callable[..., T]:
    """Made at the first call: importing the compiler takes seconds. As it stands where Triton is not installed."""
    return torch.compile(function, dynamic=True) if find_spec("triton") else function
