"""NorMuon (arXiv:2510.05491): Muon whose rows are divided by their running root mean square."""

from __future__ import annotations

from math import prod
from typing import Any

from lit_gpt.optim.engine.rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.optim.engine.updates import NormalizedRows
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import Kept, OptimizerFacts, UpdateRule, hidden

# The momentum, and one running mean square per row.
NORMUON = UpdateRule("normuon", lambda shape, args: Kept(prod(shape) + prod(shape[:-1])))
FACTS = OptimizerFacts(
    hidden(NORMUON),
    steps="spectral",
    steps_option="adjust",
    fits_hyperp=True,
    plan_momentum=True,
    cautious_decay=True,
)


def rules(plan: Plan, *, adjust: str = "spectral", normuon_beta2: float = 0.95, **options: Any) -> dict[str, MakeRule]:
    """NorMuon's rules.

    adjust: as for muon; the paper's is rms. normuon_beta2: of the running mean squares. options: see
    rules.orthogonal_rule.
    """
    update = NormalizedRows(normuon_beta2, plan.cautious_weight_decay, adjust)
    return {"normuon": orthogonal_rule(plan, update, **options), "adamw": adamw_rule(plan)}
