"""HyperP as the reference's code has it: one learning rate for all roles, embedding and head included."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.scaling import hyperp
from lit_gpt.scaling.base import LEARNED_ROLES, Situation, Transfer


def transfer(s: Situation) -> Transfer:
    """Factors of HyperP, with its rate of matrices for every role."""
    base = hyperp.transfer(s)
    return replace(base, lr=dict.fromkeys(LEARNED_ROLES, base.lr["matrix"]))
