"""NorMuon (arXiv:2510.05491): Muon whose rows are divided by their running root mean square."""

from __future__ import annotations

from typing import Any

from lit_gpt.optim._moves import NormalizedRows
from lit_gpt.optim._optimizer import RoleOptimizer
from lit_gpt.optim._rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.scaling.base import Plan


def build(groups: list[dict[str, Any]], plan: Plan) -> RoleOptimizer:
    """NorMuon over role groups; --optimizer_args are the arguments of `rules`."""
    return RoleOptimizer(groups, rules(plan, **plan.optimizer_args), plan)


def rules(plan: Plan, *, adjust: str = "spectral", normuon_beta2: float = 0.95, **options: Any) -> dict[str, MakeRule]:
    """NorMuon's rules.

    adjust: as for muon; the paper's is rms. normuon_beta2: of the running mean squares. options: see
    _rules.orthogonal_rule.
    """
    move = NormalizedRows(normuon_beta2, plan.cautious_weight_decay, adjust)
    return {"normuon": orthogonal_rule(plan, move, **options), "adamw": adamw_rule(plan)}
