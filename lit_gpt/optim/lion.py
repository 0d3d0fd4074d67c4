"""Lion (arXiv:2302.06675): the sign of an interpolated momentum, for every role.

The paper pairs it with betas 0.9 and 0.99, a learning rate 3 to 10 times smaller than AdamW's, and
a decay larger by the same factor; here all of them are the Plan's.
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim._directions import Sign
from lit_gpt.optim._moves import Step
from lit_gpt.optim._optimizer import RoleOptimizer, Rule
from lit_gpt.optim._rules import MakeRule
from lit_gpt.scaling.base import Plan


def build(groups: list[dict[str, Any]], plan: Plan) -> RoleOptimizer:
    """Lion over role groups; --optimizer_args are the arguments of `rules`."""
    return RoleOptimizer(groups, rules(plan, **plan.optimizer_args), plan)


def rules(plan: Plan) -> dict[str, MakeRule]:
    """Lion for every role."""
    return {"lion": lambda params: Rule(params, Sign(), Step(plan.cautious_weight_decay))}
