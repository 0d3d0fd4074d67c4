"""From the builder of a model to the module that trains: recomputing, compiled, sharded, initialised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lit_gpt.errors import UserError
from lit_gpt.parallel.expert_gradients import sum_in_one_pass
from lit_gpt.parallel.fabric import Runtime
from lit_gpt.parallel.fp8 import use_fp8
from lit_gpt.parallel.fp8_gather import RECIPE, send_in_8_bits
from lit_gpt.parallel.kept_casts import experts_within, keep_casts
from lit_gpt.parallel.offload import offload_activations
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
    act_offload: float = 0.0,
    offloading: bool = False,
    expert_parallel: bool = False,
    fp8: str | None = None,
    room_for_casts: int = 0,
    reduce_dtype: torch.dtype = torch.float32,
    keep_gathered: bool = False,
    fp8_gather: bool = False,
) -> nn.Module:
    """Build on the meta device, shard, allocate, initialise; one process goes through the same steps as many.

    build: makes a module whose `blocks` is an nn.ModuleList, whose `head` is a module or None, and whose parameters
    have roles.
    initialise: fills every parameter by its role, plain tensors and DTensors alike.
    compute_dtype: dtype in which the weights of blocks are gathered; the master weights are fp32.
    compile: compile every block. act_ckpt: what its backward pass computes again, see recompute.py.
    act_offload: share of the blocks whose activations wait in host memory, see offload.py; nothing on a CPU.
    offloading: keep the shards, and so the optimizer's state, in host memory.
    expert_parallel: weights of experts are sharded like the others, but never gathered. Tokens travel to them
    instead, over the mesh axis "shard" (within one node, where there are several). Checkpoints are the same.
    fp8: the recipe by which maps of blocks multiply in 8 bits, see fp8.py. fp8_gather: their weights travel so, too,
    see fp8_gather.py.
    room_for_casts: bytes that casts of experts' weights may take between steps, see kept_casts.py. In one process only.
    reduce_dtype: dtype in which the gradients of sharded weights travel. Below fp32 they travel with every micro-batch
    and are added up as shards: FSDP2 would add up whole gradients in this dtype.
    keep_gathered: weights of blocks are gathered once per step, and kept until its last backward pass has used them.
    `gradient_sync` sees to both.

    Returns a plain module: call it, and `loss.backward()`, with no wrapper of Fabric. Under FSDP2 the parameters of
    role "vector" (gains, biases, A_log) and of routers stay replicated in fp32, because they are tiny and sensitive
    to rounding (departure D55); `finish_gradients` reduces their gradients. All others are DTensors.
    Raises UserError where expert_parallel or fp8_gather cannot act.
    """
    if expert_parallel and (runtime.mesh is None or offloading):
        raise UserError(
            "--expert_parallel true sends tokens to the processes that hold their experts: it needs torchrun "
            "with several processes, and no --offloading."
        )
    if fp8_gather and (runtime.mesh is None or offloading or fp8 != RECIPE):
        raise UserError(
            f"--fp8_gather true sends weights in 8 bits between processes: it needs torchrun with several processes, "
            f"--fp8 true, --fp8_recipe {RECIPE}, and no --offloading."
        )
    with torch.device("meta"):  # no process has to hold the whole model
        model = build()
    tags = {name: dict(vars(p)) for name, p in model.named_parameters()}
    alone = runtime.mesh is None
    if fp8:
        mixtures = experts_within(model, compute_dtype, room_for_casts)[0] if alone else []
        use_fp8(model, fp8, kept=alone, kept_experts=mixtures)
    blocks = cast(nn.ModuleList, model.blocks)
    for block in blocks:
        recompute_in_backward(block, act_ckpt, compiled=compile)
    if compile:
        compile_blocks(blocks, act_ckpt)
    if runtime.device.type == "cuda":
        offload_activations(blocks, act_offload, runtime.device)
    if runtime.mesh is not None:
        if expert_parallel:
            _place_experts(model, runtime.mesh)
            tags = {n: {**tag, "stays": tag["role"] == "expert"} for n, tag in tags.items()}
        _shard(model, blocks, runtime.mesh, compute_dtype, reduce_dtype, keep_gathered, offloading, expert_parallel)
        model.reduces_every_pass = reduce_dtype != torch.float32  # type: ignore[assignment]
        model.keeps_gathered = keep_gathered  # type: ignore[assignment]
    _materialise(model, runtime.device, torch.device("cpu") if offloading else runtime.device)
    _restore(model, tags)
    if alone:
        sum_in_one_pass(model, compute_dtype, compile)
        keep_casts(model, compute_dtype, room_for_casts)
    initialise(model)
    if fp8_gather:
        send_in_8_bits(model)
    return model


def _shard(
    model: nn.Module,
    blocks: nn.ModuleList,
    mesh: DeviceMesh,
    compute_dtype: torch.dtype,
    reduce_dtype: torch.dtype,
    keep_gathered: bool,
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
        return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=reduce_dtype, cast_forward_inputs=False)

    for block in blocks:
        fully_shard(block, mp_policy=precision(compute_dtype), reshard_after_forward=not keep_gathered, **common)
    # Token table and head are gathered in fp32, as the model reads them on one device: rows enter an
    # fp32 residual stream, and their gradients are sums over many tokens. The head casts for itself.
    if model.head is not None:  # by itself, so that it travels while blocks compute; it is wanted again at once
        fully_shard(
            cast(nn.Module, model.head), mp_policy=precision(torch.float32), reshard_after_forward=False, **common
        )
    fully_shard(model, mp_policy=precision(torch.float32), **common)


def _place_experts(model: nn.Module, mesh: DeviceMesh) -> None:
    """Make the weights of experts DTensors that are sharded as FSDP2 would do it, and that FSDP2 leaves alone."""
    placements = [Shard(0) if axis == "shard" else Replicate() for axis in mesh.mesh_dim_names or ()]
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if getattr(p, "role", None) == "expert":
                placed = nn.Parameter(distribute_tensor(p.detach(), mesh, placements, src_data_rank=None))
                vars(placed).update(vars(p))
                module.register_parameter(name, placed)


def _materialise(model: nn.Module, device: torch.device, shard_device: torch.device) -> None:
    """Give every tensor memory, as nn.Module.to_empty does, with one device for shards and one for all else."""

    def empty(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device=shard_device if isinstance(tensor, DTensor) else device)

    model._apply(empty)


def _restore(model: nn.Module, tags: dict[str, dict[str, Any]]) -> None:
    """Give the parameters their roles again: sharding and materialising have replaced the Parameter objects.

    tags: name of a parameter -> its attributes before.
    """
    parameters = dict(model.named_parameters())
    assert parameters.keys() == tags.keys(), "sharding changed the names of the parameters"
    for name, p in parameters.items():
        vars(p).update(tags[name])
