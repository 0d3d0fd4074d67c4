"""AdamW (arXiv:1711.05101) for every role, by fused kernels (FusedAdamW of engine/role_optimizer.py)."""

from __future__ import annotations

from lit_gpt.optim.engine.rules import MakeRule, adamw_rule
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import ADAMW, OptimizerFacts, everywhere

FACTS = OptimizerFacts(everywhere(ADAMW), cautious_decay=True)


def rules(plan: Plan) -> dict[str, MakeRule]:
    """AdamW for every role; there are no --optimizer_args of its own."""
    return {"adamw": adamw_rule(plan)}
