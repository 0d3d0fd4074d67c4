"""Initial weights, by role, from the Plan.

| tensor                                   | role      | distribution           | why                            |
|------------------------------------------|-----------|------------------------|--------------------------------|
| wte.weight (also tied), wpe.weight       | embedding | Plan                   | N(0, 1e-4) untied: training    |
|                                          |           |                        | sets the scale, not the draw   |
| head.weight                              | head      | Plan                   | N(0, std) or zeros             |
| q, k, v, gate, out, up, down, projection | matrix    | Plan                   | fan-in uniform by default:     |
|                                          |           |                        | unit-order outputs at any n    |
| expert weights (E, out, in)              | expert    | Plan, per matrix       | an expert is a matrix          |
| router (E, n)                            | router    | Plan                   | near-uniform routing at first  |
| depthwise kernels (channels, 1, K)       | conv      | Plan, fan-in is K;     | it has no main diagonal and is |
|                                          |           | identity, orthogonal   | no rotation                    |
|                                          |           | become fan_in_uniform  |                                |
| norm gains, branch gains                 | vector    | 1                      | identity                       |
| skip gains                               | vector    | 1e-4                   | a block starts as its branch   |
| biases, sinks                            | vector    | 0                      | neutral                        |
| other vectors (A_log, dt bias, ...)      | vector    | their module's `fill`  | see the module                 |
| value tables                             | value_    | Plan                   | N(0, 0.04), see rules/sp.py    |
|                                          | table     |                        |                                |
| out, down with zero_output               | output    | zeros                  | a block starts as its skip     |
|                                          |           |                        | path                           |
| gates of a few channels                  | gate      | their module's `fill`  | see the module                 |
| single numbers (1,)                      | scalar,   | their module's `fill`  | see the module                 |
|                                          | residual_ |                        |                                |
|                                          | scalar    |                        |                                |
| buffers (selection biases of experts)    |           | 0                      | neutral                        |

There is no division of output projections by sqrt(2L): the depth factor is the Plan's
residual multiplier, for tied and untied models alike.

Each parameter has a random generator of its own, seeded by (seed, parameter name), and is
drawn whole in fp32 before a rank keeps its shard. So the weights do not depend on the
number of ranks, nor on which other parameters a model has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_gpt.roles import FILLED, Role, roles_of
from lit_gpt.scaling.base import Init, RolePlan


@torch.no_grad()
def init_parameters(model: nn.Module, roles: Mapping[str, RolePlan], seed: int) -> None:
    """Fill every parameter in place. roles: Plan.roles. Parameters may be DTensors, never meta."""
    names = roles_of(model)
    for name, parameter in model.named_parameters():
        assert not parameter.is_meta, f"{name} is on the meta device: materialise the model first"
        full = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
        generator = torch.Generator(parameter.device).manual_seed(parameter_seed(seed, name))
        if names[name] in FILLED:
            _fill_own(full, parameter.fill, generator)  # type: ignore[attr-defined]
        else:
            fill(full, roles[names[name]].init, names[name], generator)
            full.mul_(parameter.gain)  # type: ignore[attr-defined]
        _store(parameter, full)
    for buffer in model.buffers():
        buffer.zero_()


def parameter_seed(seed: int, name: str) -> int:
    """A 63-bit seed for one parameter, the same on every machine and Python."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _fill_own(full: Tensor, value: object, generator: torch.Generator) -> None:
    if callable(value):
        value(full, generator)
    else:
        full.fill_(float(value))  # type: ignore[arg-type]


def _store(parameter: nn.Parameter, full: Tensor) -> None:
    """Copy the whole tensor, or this rank's shard of it. Every rank drew the same: no communication."""
    if isinstance(parameter, DTensor):
        shard = distribute_tensor(full, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(shard.to_local())
    else:
        parameter.copy_(full)


def fill(full: Tensor, init: Init, role: Role, generator: torch.Generator) -> None:
    """Draw one whole tensor in place from an Init; see scaling.base.Init for the kinds."""
    kind = init.kind
    if role == "conv" and kind in ("identity", "orthogonal"):
        kind = "fan_in_uniform"
    fan_out, fan_in = (full.shape[0], math.prod(full.shape[1:])) if role == "conv" else full.shape[-2:]
    if kind == "normal":
        full.normal_(0.0, init.std, generator=generator)
    elif kind == "fan_in_uniform":
        full.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    elif kind == "fan_max_normal":
        full.normal_(0.0, max(fan_in, fan_out) ** -0.5, generator=generator)
    elif kind == "zeros":
        full.zero_()
    else:
        for matrix in full if full.ndim == 3 else [full]:
            _square_like(matrix, kind, generator)
    full.mul_(init.gain)


def _square_like(matrix: Tensor, kind: str, generator: torch.Generator) -> None:
    if kind == "orthogonal":
        nn.init.orthogonal_(matrix, generator=generator)
    else:
        nn.init.eye_(matrix)
