"""Activation checkpointing and compilation of one block, without changing parameter names.

Both wrap `block.forward` and not the block: module wrappers would leak into the names of a
checkpoint, and FSDP2's hooks must stay outside of both (they gather the weights that the
compiled or recomputed code reads).
"""

from __future__ import annotations

from functools import partial, wraps
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

Recompute = Literal["off", "full", "selective"]

aten = torch.ops.aten
# Matrix products and attention: what costs the most to compute again, per byte that is kept.
KEPT = [
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
]


def recompute_in_backward(block: nn.Module, what: Recompute) -> None:
    """Keep fewer activations of `block`. full: only its inputs. selective: also the outputs
    of its matrix products and attention; everything elementwise is computed again.
    """
    if what == "off":
        return
    kept = {"context_fn": partial(create_selective_checkpoint_contexts, KEPT)} if what == "selective" else {}
    inner = block.forward

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        # No random numbers in the forward pass, so no generator state to restore.
        return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, **kept, **kwargs)

    block.forward = forward


def compile_blocks(blocks: nn.ModuleList) -> None:
    """Compile each block's forward; blocks of one structure share the compiled code."""
    # One version per layer and mode (training, validation) is fine; the default of 8 is not.
    limit = 2 * len(blocks) + 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    # A multiplier is a constant of its model: as an input that may change, which it becomes when a process trains
    # a second model, it costs a wait for the device and fails with recomputation.
    torch._dynamo.config.specialize_float = True
    for block in blocks:
        block.forward = torch.compile(block.forward)
