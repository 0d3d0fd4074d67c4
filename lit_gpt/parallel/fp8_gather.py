"""Weights that travel in 8 bits between processes (--fp8_gather): half the bytes of bf16, and cast once a step.

FSDP2 asks a shard what to send, and hands over what came, where the shard has two functions for it
(fsdp_pre_all_gather, fsdp_post_all_gather; torchao's fp8 all-gather is a tensor subclass with them). Here they are
attributes of the plain tensor that a DTensor holds, so that optimizers, roles and checkpoints see the tensors that they
see without it. FSDP2 looks for them before the first pass, and torch tests that way (pull request 136130).

A product's weights share one scale (--fp8_recipe tensorwise): their largest magnitude over all shards, for all weights
by one all-reduce, when an optimizer or a load has written them. A parameter is whole as a shell in the compute dtype,
which has no values while the model trains: it is there for its gradient. In evaluation weights travel in that dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from lit_gpt.nn.linear import Linear
from lit_gpt.ops.fp8 import E4M3, RECIPES, ScaledWeights, product, quantise, scales_of
from lit_gpt.ops.fp8_cast import saturated
from lit_gpt.parallel.fp8 import in_8_bits

RECIPE = "tensorwise"


def send_in_8_bits(model: nn.Module) -> None:
    """Have the weights that multiply in 8 bits travel so. Of a sharded model, before its first pass."""
    groups = [(Sent([m.weight.shape[0] for m in group]), group) for group in in_8_bits(model, RECIPE)[0].values()]
    for sent, group in groups:
        for i, m in enumerate(group):
            m.scaled = sent
            _attach(_shard(m), sent, i)
    training, written = True, None

    def refresh(model: nn.Module, arguments: Any) -> None:
        nonlocal training, written
        if model.training is not training:
            _forget_buffers(model, {m for _, group in groups for m in group})
            training = model.training
        versions = [(m.weight._version, _shard(m)._version) for _, group in groups for m in group]
        if training and written != versions:  # by an optimizer or a load
            _cast(groups)
            written = versions

    # Before FSDP2's own, in which the streams that gather wait for what was done until then.
    model.register_forward_pre_hook(refresh, prepend=True)


class Sent(ScaledWeights):
    """Products with weights (heights, K) that came in 8 bits. shards: what this process sends of each; whole: what
    came.
    """

    def __init__(self, heights: list[int]):
        super().__init__(RECIPE, kept=False)
        self.heights, self.scale = heights, torch.empty(0)
        self.shards, self.whole = [torch.empty(0)] * len(heights), [torch.empty(0)] * len(heights)

    def products(self, x: Tensor, weights: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
        """See ScaledWeights. weights: shells."""
        ys = _Product.apply(list(widths), x.reshape(-1, x.shape[-1]), self.scale, len(weights), *self.whole, *weights)
        return [y.view(*x.shape[:-1], y.shape[-1]) for y in ys]


class _Product(torch.autograd.Function):
    """ops.fp8._ScaledProduct with weights (N_i, K) in 8 bits; their gradients go to the shells after them."""

    @staticmethod
    def forward(ctx: Any, widths: list[int], x_MK: Tensor, scale: Tensor, count: int, *rest: Tensor) -> Any:
        whole = rest[:count]
        x = quantise([x_MK], E4M3, RECIPES[RECIPE])
        y_MN = product(x.rows, x.row_scale, torch.cat(whole), scale, x_MK.dtype, True)
        ctx.save_for_backward(x.cols, x.col_scale, scale, *whole)
        ctx.count, ctx.dtype = count, x_MK.dtype
        return y_MN.split(widths, dim=1)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, ...]:
        x_cols, x_scale, scale, *whole = ctx.saved_tensors
        dy = quantise(dys, RECIPES[RECIPE].gradients, RECIPES[RECIPE])
        w_cols = torch.cat(whole).t().contiguous()  # one scale for all numbers, so nothing is rounded again
        dx = product(dy.rows, dy.row_scale, w_cols, scale, ctx.dtype, False)
        dw = product(dy.cols, dy.col_scale, x_cols, x_scale, ctx.dtype, False)
        return None, dx, None, None, *(None,) * ctx.count, *dw.split([w.shape[0] for w in whole])


def _shard(m: Linear) -> Tensor:
    return cast(DTensor, m.weight)._local_tensor


def _attach(shard: Any, sent: Sent, i: int) -> None:
    """The two functions that FSDP2 looks for; it documents them in its _fsdp_param.py."""

    def pre(mesh: Any, outer_size: torch.Size, outer_stride: Any, module: nn.Module, mp_policy: Any) -> Any:
        if not module.training:
            return (_padded(shard.to(mp_policy.param_dtype), outer_size[0], mesh.size()),), False
        # As bytes: not every backend sends numbers of 8 bits.
        return (_padded(sent.shards[i].view(torch.uint8), outer_size[0], mesh.size()),), True

    def post(outputs: tuple[Tensor, ...], training: bool, dtype: torch.dtype, *, out: Tensor | None = None) -> Any:
        (whole,) = outputs
        shell = torch.empty_like(whole[: sent.heights[i]], dtype=dtype) if out is None else out
        if training:
            sent.whole[i] = whole[: sent.heights[i]].view(E4M3)
        else:
            with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(shell):
                shell.copy_(whole[: sent.heights[i]])
        return None if out is not None else (shell, (shell,))

    shard.fsdp_pre_all_gather, shard.fsdp_post_all_gather = pre, post


def _padded(shard: Tensor, rows: int, processes: int) -> Tensor:
    """With rows of zeros up to what every process sends."""
    return F.pad(shard, (0, 0, 0, -(-rows // processes) - len(shard)))


@torch.no_grad()
def _cast(groups: Sequence[tuple[Sent, Sequence[Linear]]]) -> None:
    """Cast this process's shards."""
    shards = [[_shard(m).float() for m in group] for _, group in groups]
    # A process has none of a matrix of fewer rows than processes.
    largest = [w.abs().amax() if w.numel() else w.new_zeros(()) for ws in shards for w in ws]
    dist.all_reduce(amax := torch.stack(largest), dist.ReduceOp.MAX)
    for (sent, _), ws, part in zip(groups, shards, amax.split([len(ws) for ws in shards])):
        factor, sent.scale = scales_of(part.amax().view(1), E4M3)
        sent.shards = [saturated(w * factor, E4M3) for w in ws]


def _forget_buffers(model: nn.Module, maps: set[Linear]) -> None:
    """FSDP2 keeps a weight's buffers for what arrives, which are of the dtype that it arrived in."""
    for module in model.modules():
        if isinstance(module, FSDPModule) and (group := module._get_fsdp_state()._fsdp_param_group):
            for p in group.fsdp_params:
                if p._module_info.module in maps and p._module_info.param_name == "weight":
                    p.all_gather_outputs = []
