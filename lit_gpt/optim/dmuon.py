"""D-Muon (arXiv:2502.16982): Muon whose steps are as large as AdamW's, so that one rate serves both.

It is `muon` with --optimizer_args.adjust rms: steps of 0.2 sqrt(max(R, C)) times an orthogonal matrix.
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim import muon
from lit_gpt.optim.engine.rules import MakeRule
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, hidden

# Entries as large as AdamW's, which grow with the width as those of "rms" do.
FACTS = OptimizerFacts(hidden(muon.MUON), steps="rms", plan_momentum=True, cautious_decay=True)


def rules(plan: Plan, **options: Any) -> dict[str, MakeRule]:
    """Muon's rules. options: see rules.orthogonal_rule."""
    return muon.rules(plan, adjust="rms", **options)
