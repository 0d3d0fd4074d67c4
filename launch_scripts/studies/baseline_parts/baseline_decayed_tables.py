"""The rule `baseline` with the small weight decays that nanochat gives tables, head and residual scalars.

They are 0.001, 0.01 (value tables and head) and 0.05, and here shares of the usual 0.2 of matrices.
"""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.scaling.base import Situation, Transfer
from lit_gpt.scaling.rules import baseline

MATRICES = 0.2
DECAYS = {"embedding": 0.001, "value_table": 0.01, "head": 0.01, "residual_scalar": 0.05}


def transfer(s: Situation) -> Transfer:
    """Factors of the baseline, with these decays."""
    base = baseline.transfer(s)
    return replace(base, weight_decay=base.weight_decay | {role: decay / MATRICES for role, decay in DECAYS.items()})
