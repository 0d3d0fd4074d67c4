"""muP++ (arXiv:2507.06607): muP, depth transfer, and no decay on vector-like parameters.

On top of muP, with L = depth and L0 = base depth:

| item | rule |
|---|---|
| every learning rate | times sqrt(L0 / L) |
| every branch | times 1 / sqrt(2 L) before it is added |
| weight decay | 0 but for matrices, outputs, experts and routers |
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from lit_gpt.scaling.base import HIDDEN, Situation, Transfer
from lit_gpt.scaling.rules import mup


def transfer(s: Situation) -> Transfer:
    """Factors of muP++; see the table above."""
    base = mup.transfer(s)
    depth_factor = sqrt(s.base_depth / s.depth)
    assert base.independent_decay is not None
    return replace(
        base,
        lr={role: factor * depth_factor for role, factor in base.lr.items()},
        weight_decay=_of_hidden(base.weight_decay),
        independent_decay=_of_hidden(base.independent_decay),
        multipliers=replace(base.multipliers, residual=1 / sqrt(2 * s.depth)),
    )


def _of_hidden(decay: dict[str, float]) -> dict[str, float]:
    """Factors on the decay that leave out all but matrices, outputs, experts and routers."""
    return {role: factor if role in HIDDEN else 0.0 for role, factor in decay.items()}
