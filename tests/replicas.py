"""Whether ranks that hold the same parameters still agree, for tests of several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from lit_gpt.parallel import Runtime


@torch.no_grad()
def replicas_in_sync(model: nn.Module, runtime: Runtime) -> bool:
    """Whether every parameter that several ranks hold has the same bits on all of them.

    Replicated vectors are compared bit by bit over all ranks; copies of shards (HSDP) by a
    checksum per parameter. Collective, and it waits for the device: a check, not for every step.
    """
    if runtime.mesh is None:
        return True
    model.state_dict()  # its hook puts the sharded parameters back after a forward without backward
    parameters = list(model.parameters())
    plain = [_bits(p).reshape(-1) for p in parameters if not isinstance(p, DTensor)]
    same = _equal_on_all(torch.cat(plain), None) if plain else True
    if "replicate" in (runtime.mesh.mesh_dim_names or ()):
        sums = [_bits(p).sum(dtype=torch.int64) for p in parameters if isinstance(p, DTensor)]
        same &= _equal_on_all(torch.stack(sums), runtime.mesh.get_group("replicate"))
    return bool(runtime.sum(torch.tensor(float(same), device=runtime.device)) == runtime.world_size)


def _bits(parameter: torch.Tensor) -> torch.Tensor:
    """The fp32 numbers of this rank's part as integers, so that NaNs and signed zeros compare, too."""
    own = parameter.detach()
    return (own.to_local() if isinstance(own, DTensor) else own).contiguous().view(torch.int32)


def _equal_on_all(bits: torch.Tensor, group: dist.ProcessGroup | None) -> bool:
    """Whether a tensor is the same on all ranks of a group: its smallest values are its largest. Collective."""
    low, high = bits.clone(), bits.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN, group=group)
    dist.all_reduce(high, dist.ReduceOp.MAX, group=group)
    return torch.equal(low, high)
