"""A bag of parameters of every role, in shapes that are hard to share, and optimizers over it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt import optim
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.roles import ROLES, role
from lit_gpt.scaling.base import Init, Multipliers, Plan, RolePlan, Schedule

# Settings of optimizers that act within a few steps.
QUICK: dict[str, dict[str, Any]] = {
    "apollo": {"rank": 4, "gap": 3},
    "conda": {"update_proj_gap": 3},
    "galore": {"rank": 4, "update_proj_gap": 3},
    "prodigy": {"d0": 1e-3},
    "shampoo": {"preconditioning_compute_steps": 3},
    "soap": {"precondition_frequency": 3},
}
# name -> (role, shape)
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "table": ("embedding", (11, 8)),
    "head": ("head", (13, 8)),
    "wide": ("matrix", (94, 256)),
    "tall": ("matrix", (17, 8)),
    "tall2": ("matrix", (17, 8)),
    "tall3": ("matrix", (17, 8)),
    "small": ("matrix", (3, 5)),
    "up": ("matrix", (12, 6)),
    "experts": ("expert", (5, 6, 4)),
    "router": ("router", (5, 8)),
    "gain": ("vector", (8,)),
    "scale": ("vector", ()),
    "kernel": ("conv", (6, 1, 4)),
}
NAMES = ("adamw", "hadam", "lion", "muon", "muonball", "muonh", "normuon")
LR, DECAY = 0.03, 0.1


def plan_for(optimizer: str, roles: dict[str, RolePlan] | None = None, **fields: Any) -> Plan:
    """A Plan of which optimizers read the roles, betas, eps, momentum and decay rule."""
    facts = optim.OPTIMIZERS.facts(optimizer)
    per_role = {r: RolePlan(LR, DECAY, Init(), facts.rule(r).name) for r in ROLES}
    values: dict[str, Any] = {
        "family": "small",
        "depth": 1,
        "rule": "sp",
        "batch_rule": "none",
        "optimizer": optimizer,
        "tokens": 1,
        "batch_tokens": 1,
        "context": 1,
        "steps": 1,
        "batch_ramp": 1,
        "schedule": Schedule("constant", 0, 1),
        "roles": roles or per_role,
        "multipliers": Multipliers(),
        "beta1": 0.9,
        "beta2": 0.95,
        "eps": 1e-8,
        "scheduled_betas": False,
        "independent_weight_decay": False,
        "grad_clip": 1.0,
        "label_smoothing": 0.0,
        "seed": 0,
        "data_seed": 0,
        "counts": {},
        "model_flops_per_token": 0.0,
        "base_batch_tokens": 1,
        "base_beta2": 0.95,
    }
    return Plan(**{**values, **fields})


class Bag(nn.Module):
    """Parameters by name, drawn from their names; `up` is two maps in one matrix, `tall*` heads of one row."""

    def __init__(self) -> None:
        super().__init__()
        for i, (name, (kind, shape)) in enumerate(SHAPES.items()):
            p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(i)))
            fill = 1.0 if kind == "vector" else None
            blocks = {"maps": 2} if name == "up" else {"heads": 17} if name == "tall" else {}
            self.register_parameter(name, role(p, kind, fill, **blocks))  # type: ignore[arg-type]


def gradients(step: int) -> dict[str, Tensor]:
    """The same at every number of processes."""
    return {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(1000 * step + i))
        for i, (name, (_, shape)) in enumerate(SHAPES.items())
    }


def build(model: nn.Module, optimizer: str, plan: Plan | None = None, **args: Any) -> torch.optim.Optimizer:
    """The optimizer over the model's roles, with --optimizer_args."""
    plan = plan or plan_for(optimizer, optimizer_args=args)
    return optim.build(parameter_groups(model, plan), plan)


def options(optimizer: str) -> dict[str, Any]:
    """--optimizer_args with which an optimizer equals its reference: no 16-bit products, the paper's factors."""
    fp32 = {"ns_dtype": "fp32"} if "muon" in optimizer else {}
    return fp32 | ({"adjust": "rms"} if optimizer == "normuon" else {})
