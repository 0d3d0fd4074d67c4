"""How activations go with the size: powers fitted to what was measured, and which powers are right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lit_gpt.scaling.fit import fit_trend
from lit_gpt.tools._coord_measure import Coordinates

Axis = Literal["width", "depth"]
Quantity = Literal["activation", "change"]

# Largest power of width or depth that counts as flat: between what right rules and wrong ones have, which
# tests/tools/test_coord_check.py measures.
TOLERANCE = 0.25


@dataclass(frozen=True)
class Fit:
    """How one site's mean |x| goes with the size: proportional to size^slope.

    quantity: of the activation, or of its change since step 0. values: one per size.
    allowed: slopes that are right under a rule that transfers.
    """

    axis: Axis
    site: str
    quantity: Quantity
    step: int
    slope: float
    values: tuple[float, ...]
    allowed: tuple[float, float]

    @property
    def judged(self) -> bool:
        """Step 0 is shown, not judged: the change is zero and the logits may still fall."""
        return self.step > 0

    @property
    def passed(self) -> bool:
        return self.allowed[0] <= self.slope <= self.allowed[1]


@dataclass(frozen=True)
class CoordResult:
    """All fits of one rule. sizes: axis -> what was trained."""

    rule: str
    sizes: dict[str, tuple[int, ...]]
    fits: tuple[Fit, ...]

    def failures(self, axis: Axis) -> list[Fit]:
        """Judged fits of an axis whose slope is not allowed, worst first."""
        failed = [f for f in self.fits if f.axis == axis and f.judged and not f.passed]
        return sorted(failed, key=lambda f: -abs(f.slope))

    def passed(self, axis: Axis) -> bool:
        """Whether everything on an axis is as a rule that transfers over it has it."""
        return not self.failures(axis)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        fits = [{**dataclasses.asdict(f), "passed": f.passed} for f in self.fits]
        return {"rule": self.rule, "sizes": self.sizes, "tolerance": TOLERANCE, "fits": fits}


def allowed_fall(axis: Axis, site: str, quantity: Quantity) -> float:
    """The power of 1/size with which a site may fall in theory, while nothing is wrong.

    Width: a random head's share of the logits falls as 1/sqrt(n), what is learned stays.
    Depth, where a rule slows every weight by 1/sqrt(L): so do the changes of embedding,
    head, and each branch by itself; the sum over the branches, and the stream, stay. The
    first block sees the embedding and hardly any branch, so both act on it.
    """
    if axis == "width":
        return 0.5 if site == "logits" else 0.0
    if site.startswith("first"):
        return 1.0
    if site in ("embedding", "logits"):
        return 0.5
    return 0.5 if quantity == "change" and site not in ("branches", "stream", "hidden") else 0.0


def fit_axis(axis: Axis, sizes: list[int], per_size: list[Coordinates], rates: Sequence[float]) -> list[Fit]:
    """A Fit for every site, quantity and step. per_size: coordinates of each size, in order.

    rates: of the token table at each size. With the width the embedding may change as they do, which is the rule's
    choice, and with it the stream, which changes by nothing else before branches that started at zero have grown.
    """
    quantities: tuple[Quantity, ...] = ("activation", "change")
    fits, slower = list[Fit](), max(-slope_of(sizes, rates), 0.0) if axis == "width" else 0.0
    for site in per_size[0][0]:
        for column, quantity in enumerate(quantities):
            chosen = slower if site in ("embedding", "stream", "hidden") and quantity == "change" else 0.0
            allowed = (-max(allowed_fall(axis, site, quantity), chosen) - TOLERANCE, TOLERANCE)
            for step in range(len(per_size[0])):
                values = tuple(measured[step][site][column] for measured in per_size)
                fits.append(Fit(axis, site, quantity, step, slope_of(sizes, values), values, allowed))
    return fits


def slope_of(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power b of values ~ size^b; 0 where all are zero, NaN (which no limit allows) after a divergence."""
    if not any(values):
        return 0.0
    if not all(math.isfinite(v) and v > 0 for v in values):
        return math.nan
    return -fit_trend(np.array(sizes), np.array(values)).b
