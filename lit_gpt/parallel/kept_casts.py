"""Weights of experts in the compute dtype, kept from one optimizer step to the next.

The weights of experts live in fp32, and each pass wants them in bf16. A mixture has many weights for few tokens:
casting them in every forward and every backward pass takes 3% of a step of d16 (docs/performance_details.md). In steps
of several micro-batches it is less work to cast once, when an optimizer or a load has written the weights, and to keep
the result. Their gradients: see expert_gradients.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops.dtypes import version
from lit_gpt.parallel.expert_gradients import mixtures_by_themselves


def experts_within(model: nn.Module, dtype: torch.dtype, room: int) -> tuple[list[MixtureOfExperts], int]:
    """(the mixtures whose casts to `dtype` fit into `room` bytes, the first ones first; the bytes of these casts)."""
    chosen, used = [], 0
    for moe in mixtures_by_themselves(model):
        size = (moe.up.numel() + moe.down.numel()) * dtype.itemsize
        if dtype != torch.float32 and used + size <= room:
            chosen, used = [*chosen, moe], used + size
    return chosen, used


def keep_casts(model: nn.Module, dtype: torch.dtype, room: int) -> None:
    """Have the mixtures of experts_within keep their casts, made again before a pass where a weight was written.

    They have sinks (see expert_gradients.py). Those that train in 8 bits are left out: fp8.py has them keep as many
    bytes.
    """
    mixtures = [moe for moe in experts_within(model, dtype, room)[0] if moe.scaled is None]
    versions: dict[MixtureOfExperts, Any] = {}

    def refresh(model: nn.Module, arguments: Any) -> None:
        for moe in mixtures if model.training else ():
            if (now := version((moe.up, moe.down))) != versions.get(moe):
                _cast(moe, dtype)
                versions[moe] = now

    if mixtures:
        model.register_forward_pre_hook(refresh)


@torch.no_grad()
def _cast(moe: MixtureOfExperts, dtype: torch.dtype) -> None:
    """Fill the mixture's kept casts, or make them."""
    if moe.kept:
        for kept, weight in zip(moe.kept, (moe.up, moe.down)):
            kept.copy_(weight)
    else:
        moe.kept = tuple(weight.detach().to(dtype) for weight in (moe.up, moe.down))
