"""Gradients of sharded and replicated parameters: when they are reduced, their norm, their scale.

Sharded parameters (DTensors) are reduced by FSDP2 in backward, and their norm needs one scalar
all-reduce. Replicated ones (roles "vector" and "router") are reduced here, once per optimizer step; after that
every rank holds the same gradient. Nothing here waits for the device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lit_gpt.parallel.fabric import Runtime


class GradNorms(NamedTuple):
    """2-norms in fp32, 0-d tensors on the device: all gradients, all but vectors, vectors.

    each: (P,), of this rank's part of every gradient, whose parameters have these `roles`.
    """

    total: torch.Tensor
    weight: torch.Tensor
    vector: torch.Tensor
    each: torch.Tensor
    roles: tuple[str, ...]


def gradient_sync(model: nn.Module, enabled: bool) -> None:
    """Whether the next backward passes reduce gradients; switch it off for all but the last
    micro-batch of a step. Unreduced gradients are kept unsharded, unless the model reduces in every pass.
    Gathered weights are kept too, where the model keeps them.
    """
    if isinstance(model, FSDPModule):
        facts = cast(Any, model)
        model.set_requires_gradient_sync(enabled or facts.reduces_every_pass)
        model.set_reshard_after_backward(enabled or not facts.keeps_gathered)


@torch.no_grad()
def finish_gradients(model: nn.Module, runtime: Runtime) -> None:
    """Average the gradients of the replicated parameters over all ranks, as FSDP2 does for the rest.

    Under expert parallelism a gradient of experts is a sum over the ranks that share them; it becomes
    the mean over all ranks too.

    Call it once per optimizer step, after the last backward. With a loss of
    loss_sum * world_size / valid_tokens_of_all_ranks per rank, the mean over ranks is the
    gradient of the mean over all tokens.
    """
    if runtime.mesh is None:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None and not isinstance(p.grad, DTensor)]
    for p in model.parameters():
        if p.grad is not None and getattr(p, "stays", False):
            own = _local(p.grad).div_(runtime.world_size)
            if "replicate" in (runtime.mesh.mesh_dim_names or ()):
                dist.all_reduce(own, group=runtime.mesh.get_group("replicate"))
    if not grads:
        return
    # One buffer: there are several small vectors in every layer, and an all-reduce costs its latency, not their bytes.
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= runtime.world_size
    parts = flat.split([g.numel() for g in grads])
    torch._foreach_copy_(grads, [part.view_as(g) for part, g in zip(parts, grads)])


def grad_norms(parameters: Iterable[nn.Parameter], runtime: Runtime) -> GradNorms:
    """Norms of the full gradients, equal on all ranks; call it after `finish_gradients`."""
    sharded, whole, vectors = [], [], []
    for p in parameters:
        if p.grad is not None:
            kind = vectors if getattr(p, "role", None) == "vector" else whole
            (sharded if isinstance(p.grad, DTensor) else kind).append(p)
    norms = [_norms(kind) for kind in (sharded, vectors, whole)]
    weight, vector, rest = (_sum_of_squares(by_device, runtime.device) for by_device in norms)
    if runtime.mesh is not None:
        dist.all_reduce(weight, group=runtime.mesh.get_group("shard"))
    weight += rest
    each = torch.cat([group.to(runtime.device) for by_device in norms for _, group in by_device])
    roles = tuple(getattr(p, "role", "?") for by_device in norms for params, _ in by_device for p in params)
    return GradNorms((weight + vector).sqrt(), weight.sqrt(), vector.sqrt(), each, roles)


@torch.no_grad()
def scale_gradients_(parameters: Iterable[nn.Parameter], factor: torch.Tensor) -> None:
    """Multiply every gradient by a 0-d tensor."""
    for (device, _), group in _alike(parameters).items():
        torch._foreach_mul_(_grads(group), factor.to(device))


@torch.no_grad()
def clip_each_(parameters: Iterable[nn.Parameter], kind: str, limit: float, runtime: Runtime) -> None:
    """Clip every gradient by itself (arXiv:2406.04443): "local" to the 2-norm `limit`, "elementwise" its entries.

    Of experts each has a norm of its own, since they are matrices that happen to share a tensor.
    """
    kept = [p for p in parameters if p.grad is not None]
    if kind == "elementwise":
        for group in _alike(kept).values():
            torch._foreach_clamp_min_(_grads(group), -limit)
            torch._foreach_clamp_max_(_grads(group), limit)
        return
    squares = {p: _squares(p) for p in kept}
    split = [p for p in kept if isinstance(p.grad, DTensor) and squares[p].ndim == 0]
    if runtime.mesh is not None and split:
        total = torch.stack([squares[p].to(runtime.device) for p in split])
        dist.all_reduce(total, group=runtime.mesh.get_group("shard"))
        squares |= {p: square.to(squares[p].device) for p, square in zip(split, total)}
    for p in kept:
        _grads([p])[0].div_((squares[p].sqrt() / limit).clamp(min=1.0))


def _squares(p: nn.Parameter) -> torch.Tensor:
    """The squared norm of this rank's part of a gradient; of experts, which are whole here, (E, 1, 1)."""
    g = _grads([p])[0].float()
    return g.square().sum((1, 2), keepdim=True) if getattr(p, "role", None) == "expert" else g.square().sum()


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _alike(parameters: Iterable[nn.Parameter]) -> dict[tuple[torch.device, torch.dtype], list[nn.Parameter]]:
    """Parameters by the device and the dtype of their gradients: offloaded shards are on the host and vectors on the
    GPU, and foreach functions are slow where dtypes differ. Those without a gradient are left out."""
    groups: dict[tuple[torch.device, torch.dtype], list[nn.Parameter]] = defaultdict(list)
    for p in parameters:
        if p.grad is not None:
            groups[_local(p.grad).device, p.grad.dtype].append(p)
    return groups


def _grads(parameters: Iterable[nn.Parameter]) -> list[torch.Tensor]:
    return [_local(p.grad) for p in parameters if p.grad is not None]


def _norms(parameters: list[nn.Parameter]) -> list[tuple[list[nn.Parameter], torch.Tensor]]:
    """Parameters of one device and dtype, and the norms of this rank's part of their gradients, there."""
    return [
        (group, torch.stack(list(torch._foreach_norm(_grads(group), 2, dtype=torch.float32))))
        for group in _alike(parameters).values()
    ]


def _sum_of_squares(norms: list[tuple[list[nn.Parameter], torch.Tensor]], device: torch.device) -> torch.Tensor:
    """The sum over all norms that `_norms` gave of their squares, a 0-d tensor on `device`."""
    total = torch.zeros((), dtype=torch.float32, device=device)
    for _, group in norms:
        total += group.square().sum().to(device)
    return total
