"""D-Muon (arXiv:2502.16982): Muon whose steps are as large as AdamW's, so that one rate serves both.

It is `muon` with --optimizer_args.adjust rms: steps of 0.2 sqrt(max(R, C)) times an orthogonal matrix.
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim import muon
from lit_gpt.optim._optimizer import RoleOptimizer
from lit_gpt.optim._rules import MakeRule
from lit_gpt.scaling.base import Plan


def build(groups: list[dict[str, Any]], plan: Plan) -> RoleOptimizer:
    """D-Muon over role groups; --optimizer_args are the arguments of `rules`."""
    return RoleOptimizer(groups, rules(plan, **plan.optimizer_args), plan)


def rules(plan: Plan, **options: Any) -> dict[str, MakeRule]:
    """Muon's rules. options: see _rules.orthogonal_rule."""
    return muon.rules(plan, adjust="rms", **options)
