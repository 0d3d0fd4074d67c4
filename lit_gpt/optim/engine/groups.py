"""Parameter groups from roles: one group per role, every parameter in exactly one.

A group's learning rate and decay come from the Plan; `set_hyperparameters` writes the
values of one step into all groups. Groups are also what keeps sharded weights and
replicated vectors apart, which multi-tensor kernels must not mix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lit_gpt.roles import ROLES, roles_of
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.plan import StepValues


def parameter_groups(model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """One group per role that has parameters, in the order of roles.ROLES.

    Keys: params, role, names, update_rule, lr, weight_decay (peak values of the Plan), eps_factor.
    """
    roles, parameters = roles_of(model), dict(model.named_parameters())
    groups = []
    for role in ROLES:
        names = [name for name, r in roles.items() if r == role]
        if names:
            params = [parameters[name] for name in names]
            values = plan.roles[role]
            groups.append(
                {
                    "params": params,
                    "role": role,
                    "names": names,
                    "update_rule": values.update_rule,
                    "lr": values.lr,
                    "weight_decay": values.weight_decay,
                    "eps_factor": values.eps_factor,
                }
            )
    assert sum(len(g["params"]) for g in groups) == len(parameters), "a parameter is in no group or in two"
    return groups


def set_hyperparameters(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Write one step's learning rates, decays, betas and eps into the groups."""
    for group in optimizer.param_groups:
        group["lr"] = values.lr[group["role"]]
        group["weight_decay"] = values.weight_decay[group["role"]]
        if "betas" in group:
            group["betas"] = values.betas[group["role"]]
        if "mu" in group:
            group["mu"] = values.momentum
        if "eps" in group:
            group["eps"] = values.eps * group["eps_factor"]


def describe_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The group table as rows for printing and for the run folder."""
    return [
        {
            "role": g["role"],
            "update_rule": g["update_rule"],
            "tensors": len(g["params"]),
            "parameters": sum(p.numel() for p in g["params"]),
            "lr": g["lr"],
            "weight_decay": g["weight_decay"],
        }
        for g in optimizer.param_groups
    ]
