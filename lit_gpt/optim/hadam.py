"""The NAdam hybrid `hadam` of ArchScale: NAdam for matrices, a fast AdamW for the rest.

NAdam (Dozat 2016, with torch's momentum schedule) has the Plan's betas and eps and decoupled decay;
AdamW has its own: betas 0.8 and 0.95, eps 1e-10.
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim._directions import Adam
from lit_gpt.optim._moves import Step
from lit_gpt.optim._optimizer import RoleOptimizer, Rule
from lit_gpt.optim._rules import MakeRule, adamw_rule
from lit_gpt.scaling.base import Plan

BETAS, EPS = (0.8, 0.95), 1e-10


def build(groups: list[dict[str, Any]], plan: Plan) -> RoleOptimizer:
    """Hadam over role groups; --optimizer_args are the arguments of `rules`."""
    return RoleOptimizer(groups, rules(plan, **plan.optimizer_args), plan)


def rules(plan: Plan) -> dict[str, MakeRule]:
    """NAdam for matrices, experts and routers, AdamW for the other roles."""
    return {
        "nadam": lambda params: Rule(params, Adam(nesterov=True), Step(plan.cautious_weight_decay)),
        "adamw": adamw_rule(plan, BETAS, EPS),
    }
