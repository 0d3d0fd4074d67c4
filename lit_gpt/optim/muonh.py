"""MuonH (arXiv:2603.28743): Muon on hyperspheres. Weights keep the Frobenius norm they started with.

Matrices, experts (each on a sphere of its own, however many processes there are) and routers go
along the orthogonalised momentum, the untied head along AdamW's direction; the learning rate is the
length of a step relative to the norm. Embeddings, vectors and convolutions are plain AdamW.
Weights that start at zero could never move: a Plan with such a head is refused (departure D50).
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim.engine.directions import Adam
from lit_gpt.optim.engine.role_optimizer import Rule
from lit_gpt.optim.engine.rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.optim.engine.updates import Sphere
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, hidden, taking

MUONH = UpdateRule("muonh", copies(1), taking(), holds_norm=True, keeps_start=True)
ADAMH = UpdateRule("adamh", copies(2), holds_norm=True, keeps_start=True)
FACTS = OptimizerFacts(
    hidden(MUONH) | {"head": ADAMH},
    steps="spectral",
    fits_hyperp=True,
    plan_momentum=True,
    cautious_decay=True,
    default_decay=0.0,  # ArchScale's, for all roles; a decay that is given acts off the spheres (departure D39)
)


def rules(plan: Plan, **options: Any) -> dict[str, MakeRule]:
    """MuonH's rules; the norms to keep are those of the weights now. options: see rules.orthogonal_rule."""
    return {
        "muonh": orthogonal_rule(plan, Sphere(), **options),
        "adamh": lambda params: Rule(params, Adam(), Sphere()),
        "adamw": adamw_rule(plan),
    }
