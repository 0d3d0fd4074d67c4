"""MuonBall: Muon on spectral spheres (ArchScale).

Matrices, experts and routers keep the spectral norm sqrt(fan_out / fan_in); the learning rate is the
length of a step relative to it. Every other role is trained by AdamW.
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim._moves import Ball
from lit_gpt.optim._optimizer import RoleOptimizer
from lit_gpt.optim._rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.scaling.base import Plan


def build(groups: list[dict[str, Any]], plan: Plan) -> RoleOptimizer:
    """MuonBall over role groups; --optimizer_args are the arguments of `rules`."""
    return RoleOptimizer(groups, rules(plan, **plan.optimizer_args), plan)


def rules(plan: Plan, *, ns: str = "polar_express", **options: Any) -> dict[str, MakeRule]:
    """MuonBall's rules. ns, options: see _rules.orthogonal_rule."""
    return {"muonball": orthogonal_rule(plan, Ball(), ns=ns, **options), "adamw": adamw_rule(plan)}
