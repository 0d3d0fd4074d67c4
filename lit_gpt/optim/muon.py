"""Muon (Jordan 2024, kellerjordan.github.io/posts/muon; arXiv:2502.16982): orthogonal momentum for matrices.

With momentum M <- mu M + G, X <- (1 - eta lambda) X - eta f(shape) NewtonSchulz(mu M + G). Matrices,
experts (each for itself) and routers; every other role is trained by AdamW.
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim.engine.rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.optim.engine.updates import Step
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, hidden

MUON = UpdateRule("muon", copies(1))  # keeps its momentum
FACTS = OptimizerFacts(
    hidden(MUON),
    steps="spectral",
    steps_option="adjust",
    fits_hyperp=True,
    plan_momentum=True,
    cautious_decay=True,
)


def rules(plan: Plan, *, adjust: str = "spectral", **options: Any) -> dict[str, MakeRule]:
    """Muon's rules.

    adjust: f, one of spectral, clip, rms, none (see updates.adjusted). The scaling rules know how each of them
    grows with the width (optimizer_facts.GROWTH). options: see rules.orthogonal_rule.
    """
    update = Step(plan.cautious_weight_decay, adjust)
    return {"muon": orthogonal_rule(plan, update, **options), "adamw": adamw_rule(plan)}
