"""The NAdam hybrid `hadam` of ArchScale: NAdam for matrices, a fast AdamW for the rest.

NAdam (Dozat 2016, with torch's momentum schedule) has the Plan's betas and eps and decoupled decay; AdamW has its own:
betas 0.8 and 0.95, eps 1e-10. Betas that a scaling rule has for a role, as `baseline` has, take the place of 0.8 and
0.95: they say more of that role.
"""

from __future__ import annotations

from lit_gpt.optim.engine.directions import Adam
from lit_gpt.optim.engine.role_optimizer import Rule
from lit_gpt.optim.engine.rules import MakeRule, adamw_rule
from lit_gpt.optim.engine.updates import Step
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, everywhere, hidden, taking

BETAS, EPS = (0.8, 0.95), 1e-10  # of AdamW, as in ArchScale, whose defaults stay (docs/departures.md)
FAST = UpdateRule("adamw", copies(2), taking(beta1=BETAS[0], beta2=BETAS[1], eps=EPS), gives_way=True)
FACTS = OptimizerFacts(everywhere(FAST) | hidden(UpdateRule("nadam", copies(2))), cautious_decay=True)


def rules(plan: Plan) -> dict[str, MakeRule]:
    """NAdam for matrices, experts and routers, AdamW for the other roles."""
    return {
        "nadam": lambda params: Rule(params, Adam(nesterov=True), Step(plan.cautious_weight_decay)),
        "adamw": adamw_rule(plan, BETAS, EPS),
    }
