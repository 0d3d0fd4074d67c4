"""Weights of experts in the compute dtype, kept from one optimizer step to the next.

The weights of experts live in fp32. Each pass wants them in bf16, and backward gives their gradients in bf16. A mixture
has many weights for few tokens: casting them in every forward and every backward pass, then casting the gradients and
adding them up, took 9% of a step of d16 (docs/performance_details.md). In steps of several micro-batches it is less
work to cast once, when an optimizer or a load has written the weights, and to keep the result.

A kept cast is a leaf of its own to autograd. So its gradient arrives as backward made it, in bf16, and is added in fp32
to that of the weight in one pass over both. The sums are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops.dtypes import version


def experts_within(model: nn.Module, dtype: torch.dtype, room: int) -> tuple[list[MixtureOfExperts], int]:
    """(the mixtures whose casts to `dtype` fit into `room` bytes, the first ones first; the bytes of these casts).

    None where layers share their blocks: autograd would add up the gradients of one pass in `dtype`.
    """
    chosen, used = [], 0
    blocks: Any = model.blocks
    if len(getattr(model, "block_of", blocks)) > len(blocks):
        return [], 0
    for moe in (m for m in blocks.modules() if isinstance(m, MixtureOfExperts)):
        size = (moe.up.numel() + moe.down.numel()) * dtype.itemsize
        if dtype != torch.float32 and used + size <= room:
            chosen, used = [*chosen, moe], used + size
    return chosen, used


def keep_casts(model: nn.Module, dtype: torch.dtype, room: int, compiled: bool) -> None:
    """Have the mixtures of experts_within keep their casts, made again before a pass where a weight was written.

    Those that train in 8 bits are left out: fp8.py has them keep as many bytes.
    """
    mixtures = [moe for moe in experts_within(model, dtype, room)[0] if moe.scaled is None]
    add = torch.compile(_add, dynamic=True) if compiled else _add
    versions: dict[MixtureOfExperts, Any] = {}

    def refresh(model: nn.Module, arguments: Any) -> None:
        for moe in mixtures if model.training else ():
            if (now := version((moe.up, moe.down))) != versions.get(moe):
                _cast(moe, dtype, add)
                versions[moe] = now

    if mixtures:
        model.register_forward_pre_hook(refresh)


@torch.no_grad()
def _cast(moe: MixtureOfExperts, dtype: torch.dtype, add: Callable[[Tensor, Tensor], None]) -> None:
    """Fill the mixture's kept casts, or make them."""
    if moe.kept:
        for kept, weight in zip(moe.kept, (moe.up, moe.down)):
            kept.copy_(weight)
    else:
        moe.kept = tuple(_leaf(weight, dtype, add) for weight in (moe.up, moe.down))


def _leaf(weight: nn.Parameter, dtype: torch.dtype, add: Callable[[Tensor, Tensor], None]) -> Tensor:
    """The weight in `dtype`, whose gradients go to those of the weight."""
    leaf = weight.detach().to(dtype).requires_grad_(weight.requires_grad)

    def hand_over(leaf: Tensor) -> None:
        assert leaf.grad is not None
        if weight.grad is None:
            weight.grad = leaf.grad.to(weight.dtype)
        else:
            add(weight.grad, leaf.grad)
        leaf.grad = None

    if leaf.requires_grad:
        leaf.register_post_accumulate_grad_hook(hand_over)
    return leaf


def _add(total: Tensor, part: Tensor) -> None:
    """To be compiled: torch's own kernel for two dtypes casts number by number."""
    total.add_(part)
