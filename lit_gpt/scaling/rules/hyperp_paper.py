"""HyperP as its paper has it (arXiv:2603.28743): learning rates of tables and head are those of depth alone."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from lit_gpt.scaling.base import Situation, Transfer
from lit_gpt.scaling.rules import hyperp

TABLES = ("embedding", "head", "value_table")


def transfer(s: Situation) -> Transfer:
    """Factors of HyperP, with sqrt(L0 / L) for embedding, value tables and head."""
    base = hyperp.transfer(s)
    return replace(base, lr={**base.lr, **dict.fromkeys(TABLES, sqrt(s.base_depth / s.depth))})
