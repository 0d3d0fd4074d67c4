"""MuonH (arXiv:2603.28743): Muon on hyperspheres. Weights keep the Frobenius norm they started with.

Matrices, experts (each on a sphere of its own, however many processes there are) and routers go
along the orthogonalised momentum, the untied head along AdamW's direction; the learning rate is the
length of a step relative to the norm. Embeddings, vectors and convolutions are plain AdamW.
Weights that start at zero could never move: a Plan with such a head is refused.
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim._directions import Adam
from lit_gpt.optim._moves import Sphere
from lit_gpt.optim._optimizer import RoleOptimizer, Rule
from lit_gpt.optim._rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.scaling.base import Plan


def build(groups: list[dict[str, Any]], plan: Plan) -> RoleOptimizer:
    """MuonH over role groups; --optimizer_args are the arguments of `rules`."""
    return RoleOptimizer(groups, rules(plan, **plan.optimizer_args), plan)


def rules(plan: Plan, **options: Any) -> dict[str, MakeRule]:
    """MuonH's rules; the norms to keep are those of the weights now. options: see _rules.orthogonal_rule."""
    return {
        "muonh": orthogonal_rule(plan, Sphere(), **options),
        "adamh": lambda params: Rule(params, Adam(), Sphere()),
        "adamw": adamw_rule(plan),
    }
