"""MuonBall: Muon on spectral spheres (ArchScale).

Matrices, experts and routers keep the spectral norm sqrt(fan_out / fan_in); the learning rate is the
length of a step relative to it. Every other role is trained by AdamW.
"""

from __future__ import annotations

from math import prod
from typing import Any

from lit_gpt.optim.engine.rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.optim.engine.updates import Ball
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import Args, Kept, OptimizerFacts, Shape, UpdateRule, hidden, taking


def memory(shape: Shape, args: Args) -> Kept:
    """The momentum, and a vector for each map: experts' are divided with them, that of a matrix is whole everywhere."""
    *experts, _, columns = shape
    return Kept(prod(shape) + prod(shape[::2]), 0) if experts else Kept(prod(shape), columns)


FACTS = OptimizerFacts(
    hidden(UpdateRule("muonball", memory, taking(), holds_norm=True)),
    steps="spectral",
    fits_hyperp=True,
    plan_momentum=True,
    cautious_decay=True,
    default_decay=0.0,  # ArchScale's, for all roles; a decay that is given acts off the spheres (departure D39)
)


def rules(plan: Plan, *, ns: str = "polar_express", **options: Any) -> dict[str, MakeRule]:
    """MuonBall's rules. ns, options: see rules.orthogonal_rule."""
    return {"muonball": orthogonal_rule(plan, Ball(), ns=ns, **options), "adamw": adamw_rule(plan)}
