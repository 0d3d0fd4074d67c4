"""Gradients of experts' weights in the compute dtype, added up in fp32.

The weights live in fp32, and backward makes their gradients in bf16. Autograd would cast them to fp32 and then add them
to those of earlier micro-batches: 18 bytes are read and written for each number, and there is a gradient in fp32 beside
the sum. So the gradient goes to a leaf of its own, a sink, as backward made it, and from there to the weight's sum in
one pass over both, 10 bytes. The sums are the same to the last bit.

A sink is never read: it is one number that has been expanded to the shape of the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.nn.moe import MixtureOfExperts


def mixtures_by_themselves(model: nn.Module) -> list[MixtureOfExperts]:
    """The layers' mixtures, in their order; none where layers share their blocks: autograd would add up the gradients
    of one pass in the compute dtype.
    """
    blocks: Any = model.blocks
    if len(getattr(model, "block_of", blocks)) > len(blocks):
        return []
    return [m for m in blocks.modules() if isinstance(m, MixtureOfExperts)]


def sum_in_one_pass(model: nn.Module, dtype: torch.dtype, compiled: bool) -> None:
    """Give the mixtures of a model that computes in `dtype` their sinks; those that train in 8 bits have none."""
    add, copy = (torch.compile(f, dynamic=True) if compiled else f for f in (_add, _copy))
    for moe in mixtures_by_themselves(model) if dtype != torch.float32 else ():
        if moe.scaled is None:
            moe.sinks = tuple(_sink(weight, dtype, add, copy) for weight in (moe.up, moe.down))


Pass = Callable[[Tensor, Tensor], None]


def _sink(weight: nn.Parameter, dtype: torch.dtype, add: Pass, copy: Pass) -> Tensor:
    """A leaf whose gradients go to those of the weight."""
    sink = torch.zeros((), dtype=dtype, device=weight.device).expand(weight.shape).requires_grad_()

    def hand_over(sink: Tensor) -> None:
        part, sink.grad = sink.grad, None
        assert part is not None
        if not weight.requires_grad:
            return
        if weight.grad is None:
            weight.grad = torch.empty_like(weight)
            copy(weight.grad, part)
        else:
            add(weight.grad, part)

    sink.register_post_accumulate_grad_hook(hand_over)
    return sink


# To be compiled: torch's own kernels for two dtypes cast number by number.
def _add(total: Tensor, part: Tensor) -> None:
    total.add_(part)


def _copy(total: Tensor, part: Tensor) -> None:
    total.copy_(part)
