"""What optimizer benchmarks train: N(0, 0.02) everywhere, one rate, decay for linear maps only.

As `sp`, but for two things: the token table starts at N(0, 0.02) too, untied or not, and it does not decay,
nor do value tables and vectors (arXiv:2509.01440 decays linear maps only).
"""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.scaling.base import Init, Situation, Transfer
from lit_gpt.scaling.rules import sp


def transfer(s: Situation) -> Transfer:
    """Factors of the plain parameterization; see the top of this file."""
    base, std = sp.transfer(s), s.embedding_init_std
    return replace(
        base,
        weight_decay=base.weight_decay | {"embedding": 0.0, "value_table": 0.0, "vector": 0.0},
        init=base.init | {"embedding": Init("normal", s.init_std if std is None else std)},
    )
