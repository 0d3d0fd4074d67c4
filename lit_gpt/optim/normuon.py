"""NorMuon (arXiv:2510.05491): Muon whose rows are divided by their running root mean square."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, Literal

from lit_gpt.optim.engine.rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.optim.engine.updates import NormalizedRows
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import Kept, OptimizerFacts, UpdateRule, hidden, taking


def _kept(shape: Sequence[int], args: Mapping[str, Any]) -> Kept:
    """The momentum, and one running mean square per row or column; those of columns are whole on every process."""
    *experts, rows, columns = shape
    if args.get("normuon_of") != "longer" or rows >= columns:
        return Kept(prod(shape) + prod(shape[:-1]))
    return Kept(prod(shape) + prod(experts) * columns) if experts else Kept(prod(shape), columns)


NORMUON = UpdateRule("normuon", _kept, taking())
FACTS = OptimizerFacts(
    hidden(NORMUON),
    steps="spectral",
    steps_option="adjust",
    fits_hyperp=True,
    plan_momentum=True,
    cautious_decay=True,
)


def rules(
    plan: Plan,
    *,
    adjust: str = "spectral",
    normuon_beta2: float = 0.95,
    normuon_of: Literal["rows", "longer"] = "rows",
    **options: Any,
) -> dict[str, MakeRule]:
    """NorMuon's rules.

    adjust: as for muon; the paper's is rms. normuon_beta2: of the running mean squares. normuon_of: what has one: each
    row, as in the paper, or each line along the longer side, which are the columns of wide matrices (nanochat).
    options: see rules.orthogonal_rule.
    """
    update = NormalizedRows(normuon_beta2, plan.cautious_weight_decay, adjust, normuon_of)
    return {"normuon": orthogonal_rule(plan, update, **options), "adamw": adamw_rule(plan)}
