"""From a description of a model to the module that trains: sharded, materialised, initialised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lit_gpt.errors import UserError
from lit_gpt.parallel.fabric import Runtime
from lit_gpt.parallel.recompute import Recompute, compile_blocks, recompute_in_backward
from lit_gpt.roles import REPLICATED


def parallelize_model(
    runtime: Runtime,
    build: Callable[[], nn.Module],
    initialise: Callable[[nn.Module], None],
    *,
    compute_dtype: torch.dtype,
    compile: bool = False,
    act_ckpt: Recompute = "off",
    offloading: bool = False,
    expert_parallel: bool = False,
) -> nn.Module:
    """Build on the meta device, shard, allocate, initialise. The same steps alone and distributed.

    build: makes a module whose `blocks` is an nn.ModuleList and whose parameters have roles.
    initialise: fills every parameter by role, plain tensors and DTensors alike.
    compute_dtype: dtype in which the weights of blocks are gathered; the master weights are fp32.
    expert_parallel: weights of experts, sharded as ever, are never gathered: tokens travel to them, over
    the mesh axis "shard" (one node, where there are several). Checkpoints are the same either way.
    Call the result directly, and `loss.backward()`: no Fabric wrapper is involved.

    Under FSDP2 the parameters of role "vector" (gains, biases, A_log, ...: tiny, and sensitive to
    rounding), and those of routers, stay replicated in fp32, see `finish_gradients`; all others are DTensors.
    """
    if expert_parallel and (runtime.mesh is None or offloading):
        raise UserError(
            "--expert_parallel true sends tokens to the processes that hold their experts: it needs torchrun "
            "with several processes, and no --offloading."
        )
    with torch.device("meta"):
        model = build()
    tags = {name: dict(vars(p)) for name, p in model.named_parameters()}
    blocks = cast(nn.ModuleList, model.blocks)
    for block in blocks:
        recompute_in_backward(block, act_ckpt)
    if compile:
        compile_blocks(blocks)
    if runtime.mesh is not None:
        if expert_parallel:
            _place_experts(model, runtime.mesh)
            tags = {n: {**tag, "stays": tag["role"] == "expert"} for n, tag in tags.items()}
        _shard(model, blocks, runtime.mesh, compute_dtype, offloading, expert_parallel)
    _materialise(model, runtime.device, torch.device("cpu") if offloading else runtime.device)
    _restore(model, tags)
    initialise(model)
    return model


def _shard(
    model: nn.Module,
    blocks: nn.ModuleList,
    mesh: DeviceMesh,
    compute_dtype: torch.dtype,
    offloading: bool,
    expert_parallel: bool,
) -> None:
    kept = (*REPLICATED, "expert") if expert_parallel else REPLICATED
    common: dict[str, Any] = {
        "mesh": mesh,
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if offloading else OffloadPolicy(),
        "ignored_params": {p for p in model.parameters() if getattr(p, "role", None) in kept},
    }

    def precision(dtype: torch.dtype) -> MixedPrecisionPolicy:
        return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)

    for block in blocks:
        fully_shard(block, mp_policy=precision(compute_dtype), **common)
    # Token table and head are gathered in fp32, as the model reads them on one device: rows enter an
    # fp32 residual stream, and their gradients are sums over many tokens. The head casts for itself.
    fully_shard(model, mp_policy=precision(torch.float32), **common)


def _place_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Weights of experts as DTensors sharded as FSDP2 would, but not under it."""
    placements = [Shard(0) if axis == "shard" else Replicate() for axis in mesh.mesh_dim_names or ()]
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if getattr(p, "role", None) == "expert":
                placed = nn.Parameter(distribute_tensor(p.detach(), mesh, placements, src_data_rank=None))
                vars(placed).update(vars(p))
                module.register_parameter(name, placed)


def _materialise(model: nn.Module, device: torch.device, shard_device: torch.device) -> None:
    """nn.Module.to_empty with one device for the shards and one for everything else."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=shard_device if isinstance(tensor, DTensor) else device)

    model._apply(empty)


def _restore(model: nn.Module, tags: dict[str, dict[str, Any]]) -> None:
    """Sharding and materialising replace the Parameter objects, and with them their roles."""
    parameters = dict(model.named_parameters())
    assert parameters.keys() == tags.keys(), "setting up the model changed the names of its parameters"
    for name, p in parameters.items():
        vars(p).update(tags[name])
