"""Recomputation: what a block keeps for its backward pass, and compilation of one block.

Of full and selective the policy is KEPT_OPERATIONS, and nothing else says what is kept: the trainer checkpoints by it,
and the memory estimate (preflight/activations.py) counts by it. Of cheap it is the compiler's, told by CHEAP.

Both wrap `block.forward` and not the block: module wrappers would leak into the names of a
checkpoint, and FSDP2's hooks must stay outside of both (they gather the weights that the
compiled or recomputed code reads).
"""

from __future__ import annotations

from functools import partial, wraps
from typing import Any, Literal

import torch
from torch import nn
from torch._functorch import config as autograd_config
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lit_gpt.ops import flash4

Recompute = Literal["off", "cheap", "selective", "full"]

aten = torch.ops.aten
# Under "selective" the outputs of these are kept and the rest is computed again: they cost the most to compute, per
# byte that is kept (selective recomputation, arXiv:2205.05198, and torchtitan's list of operations).
KEPT_OPERATIONS: dict[str, tuple[Any, ...]] = {
    "product": (aten.mm.default, aten.addmm.default, aten._scaled_mm.default),
    "attention": (
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        torch.ops.higher_order.flex_attention,  # windows and documents on a GPU without FlashAttention 3 or 4
        flash4.attention_forward._opoverload,
    ),
}
# Under "cheap" nothing wraps a block: the compiler, which cuts a block's graph into its forward and its backward pass,
# may compute again whatever it can fuse into the kernels of backward (norms, SwiGLU, casts of weights), and never a
# product, attention or another kernel. By itself it would keep such a tensor wherever a product of backward reads it.
CHEAP = ("ban_recompute_materialized_backward", "ban_recompute_used_far_apart", "ban_recompute_long_fusible_chains")
# FlashAttention 2 and 3 register their operations under these names (flash_attn_interface.py of either).
FLASH_NAMESPACES = ("flash_attn", "flash_attn_3")


def is_kept(operation: Any) -> bool:
    """Whether "selective" keeps the output of an operation that torch dispatches."""
    named = any(operation in operations for operations in KEPT_OPERATIONS.values())
    return named or getattr(operation, "namespace", "") in FLASH_NAMESPACES


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_kept(operation) else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_nothing(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_RECOMPUTE


def recompute_in_backward(block: nn.Module, what: Recompute, compiled: bool = False) -> None:
    """Keep fewer activations of `block`. full: only its inputs. selective: also what KEPT_OPERATIONS give.

    compiled: whether `compile_blocks` follows, which does what cheap means. Without a compiler cheap is selective,
    since checkpoints keep the outputs of whole operations, whether backward needs them or not.
    """
    if what == "off" or (what == "cheap" and compiled):
        return
    policy, kept = _policy if what != "full" else _keep_nothing, {}
    # Compiled code without a policy keeps what operations give that are not torch's own, experts', with torch 2.11.
    if what != "full" or compiled:
        kept = {"context_fn": partial(create_selective_checkpoint_contexts, policy)}
    inner = block.forward

    @wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        # No random numbers in the forward pass, so no generator state to restore.
        return checkpoint(inner, *args, use_reentrant=False, preserve_rng_state=False, **kept, **kwargs)

    block.forward = forward


def compile_blocks(blocks: nn.ModuleList, what: Recompute = "off") -> None:
    """Compile each block's forward; blocks of one structure share the compiled code. what: see CHEAP."""
    # Dynamo stops compiling a function after recompile_limit versions of it, 8 by default, and runs it uncompiled. All
    # blocks have one forward function, of which each layer and mode (training, validation) may need a version.
    limit = 2 * len(blocks) + 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    # A multiplier is a constant of its model: as an input that may change, which it becomes when a process trains
    # a second model, it costs a wait for the device and fails with recomputation.
    torch._dynamo.config.specialize_float = True
    tell_compiler(what)
    for block in blocks:
        block.forward = torch.compile(block.forward)


def tell_compiler(what: Recompute) -> None:
    """What torch.compile may compute again in the backward passes that it makes from now on; see CHEAP."""
    for ban in CHEAP:
        setattr(autograd_config, ban, what != "cheap")
