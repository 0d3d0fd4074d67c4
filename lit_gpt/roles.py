"""Roles: what a parameter is for. Everything that treats parameters differently reads the role.

Initialisation, learning rate, weight decay, eligibility for matrix optimizers, the
hypersphere and parameter counting all follow from the role a module gave its parameter.
A module declares roles in its constructor:

    self.weight = role(nn.Parameter(...), "matrix")

and `roles_of(model)` checks that each parameter has exactly one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar, get_args

import torch
from torch import nn

from lit_gpt.errors import UserError, did_you_mean

Role = Literal[
    "embedding", "head", "matrix", "expert", "router", "vector", "conv",
    "value_table", "output", "gate", "scalar", "residual_scalar",
]  # fmt: skip
ROLES: tuple[str, ...] = get_args(Role)
P = TypeVar("P", bound=nn.Parameter)

# What each role holds:
#   embedding  token table (vocab, n); also the tied table, and that of learned positions
#   head       untied output projection (vocab, n)
#   matrix     any other 2-D weight of a linear map, (fan_out, fan_in)
#   expert     (experts, fan_out, fan_in)
#   router     (experts, n)
#   vector     gains, biases, sinks, A_log, D, lambdas: whatever is not a linear map
#   conv       depthwise convolution kernels
#   value_table      value embeddings (vocab, key-value heads x head size); see nn/value_embedding.py
#   output           the last projection of a mixer or feed-forward network, where it starts at zero (zero_output);
#                    otherwise such a map is a matrix
#   gate             maps of a few fixed channels to a few gates, (gates, channels): neither side grows with the width
#   scalar           single numbers (1,): how much of the first embedding, of the previous token or of the middle
#                    of the model is mixed in
#   residual_scalar  single numbers (1,) on the residual stream itself, which want a smaller rate

# How many dimensions a parameter has, where its start and its updates depend on that.
DIMENSIONS = {**dict.fromkeys(("embedding", "head", "matrix", "router", "value_table", "output"), 2), "expert": 3}
# What brings its own initial value.
FILLED = ("vector", "gate", "scalar", "residual_scalar")
# On several processes every one of them has these whole, in fp32: tiny, and sensitive to rounding.
REPLICATED = (*FILLED, "router")

# Read by the row and never multiplied: what --table_precision stores in bf16.
TABLES = ("embedding", "value_table")

Fill = float | Callable[[torch.Tensor, torch.Generator], None]


def role(
    parameter: P,
    name: Role,
    fill: Fill | None = None,
    *,
    gain: float = 1.0,
    maps: int = 1,
    heads: int = 1,
    scores: bool = False,
) -> P:
    """Tag a parameter with its role. Tagging twice with different roles is a bug.

    fill: the initial value where the role has no distribution in the Plan (FILLED), as a
    constant or as a function that fills a full, unsharded tensor in place.
    gain: multiplies the start that the Plan gives the role.
    maps: equal blocks of rows that are separate linear maps in one matrix, such as gate and up.
    heads: blocks of rows that are heads of one map. scores: whether they are queries or keys.
    Raises UserError for an unknown role, for dimensions that the role has not, and for a `fill` too many or too few.
    """
    before = getattr(parameter, "role", name)
    if name not in ROLES:  # in a plugin
        raise UserError(f"There is no role {name!r}.{did_you_mean(name, ROLES)} The roles are {', '.join(ROLES)}.")
    assert before == name, f"role {name!r} on a parameter that already is {before!r}"
    if (fill is not None) != (name in FILLED):
        way = f'Give it: role(parameter, "{name}", 1.0)' if name in FILLED else "Leave it out: the Plan has it"
        raise UserError(f"Parameters of the roles {', '.join(FILLED)} bring their initial value, others none. {way}.")
    if parameter.ndim != DIMENSIONS.get(name, parameter.ndim):
        raise UserError(
            f"A parameter of shape {tuple(parameter.shape)} cannot have the role {name!r}, which is for tensors of "
            f"{DIMENSIONS[name]} dimensions; what is no linear map is a vector."
        )
    parameter.role = name  # type: ignore[attr-defined]
    parameter.fill, parameter.gain = fill, gain  # type: ignore[attr-defined]
    parameter.maps, parameter.heads, parameter.scores = maps, heads, scores  # type: ignore[attr-defined]
    return parameter


def blocks_of(parameter: torch.Tensor, *, maps: bool, heads: bool) -> int:
    """Blocks of rows that an optimizer should see as matrices of their own: maps, heads, both or neither."""
    return (parameter.maps if maps else 1) * (parameter.heads if heads else 1)  # type: ignore[attr-defined]


def roles_of(model: nn.Module) -> dict[str, Role]:
    """Parameter name -> role, each parameter once (a tied table appears once).

    Raises UserError that names every parameter without a role, which a module of a plugin can have.
    """
    found = {name: getattr(p, "role", None) for name, p in model.named_parameters()}
    missing = [name for name, r in found.items() if r is None]
    if missing:
        raise UserError(
            f"Parameters without a role: {', '.join(missing)}. Give each its role where it is made, such as "
            'role(nn.Parameter(torch.empty(n)), "vector", 1.0) of lit_gpt.roles; lit_gpt.nn.linear.Linear has one.'
        )
    return found  # type: ignore[return-value]
