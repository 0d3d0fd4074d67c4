"""Muon (Jordan 2024, kellerjordan.github.io/posts/muon; arXiv:2502.16982): orthogonal momentum for matrices.

With momentum M <- mu M + G, X <- (1 - eta lambda) X - eta f(shape) NewtonSchulz(mu M + G). Matrices,
experts (each for itself) and routers; every other role is trained by AdamW.
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim._moves import Step
from lit_gpt.optim._optimizer import RoleOptimizer
from lit_gpt.optim._rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.scaling.base import Plan


def build(groups: list[dict[str, Any]], plan: Plan) -> RoleOptimizer:
    """Muon over role groups; --optimizer_args are the arguments of `rules`."""
    return RoleOptimizer(groups, rules(plan, **plan.optimizer_args), plan)


def rules(plan: Plan, *, adjust: str = "spectral", **options: Any) -> dict[str, MakeRule]:
    """Muon's rules.

    adjust: f, one of spectral, clip, rms, none (see _moves.adjusted). The scaling rules know how each of them
    grows with the width (scaling/methods.py). options: see _rules.orthogonal_rule.
    """
    move = Step(plan.cautious_weight_decay, adjust)
    return {"muon": orthogonal_rule(plan, move, **options), "adamw": adamw_rule(plan)}
