"""Lion (arXiv:2302.06675): the sign of an interpolated momentum, for every role.

The paper pairs it with betas 0.9 and 0.99, a learning rate 3 to 10 times smaller than AdamW's, and
a decay larger by the same factor; here all of them are the Plan's.
"""

from __future__ import annotations

from lit_gpt.optim.engine.directions import Sign
from lit_gpt.optim.engine.role_optimizer import Rule
from lit_gpt.optim.engine.rules import MakeRule
from lit_gpt.optim.engine.updates import Step
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, everywhere, taking

LION = UpdateRule("lion", copies(1), taking(beta1=None, beta2=None))
FACTS = OptimizerFacts(everywhere(LION), cautious_decay=True)


def rules(plan: Plan) -> dict[str, MakeRule]:
    """Lion for every role; there are no --optimizer_args of its own."""
    return {"lion": lambda params: Rule(params, Sign(), Step(plan.cautious_weight_decay))}
