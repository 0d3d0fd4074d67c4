"""A power law of one quantity: y = a x^-b + c."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_gpt.scaling.fit import PowerLaw, fit_power_law, power_laws
from lit_gpt.scaling.law import Data, Example, Fitted, Law


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """Least squares of y; see fit_power_law. fixed: c, such as 0 for a law without offset."""
    return _fitted(fit_power_law(data["x"], data["y"], offset=fixed.get("c")), fixed)


def _fitted(law: PowerLaw, fixed: Mapping[str, float]) -> Fitted:
    free = 2 if "c" in fixed or law.c == 0 else 3

    def place(budget: float) -> Data:
        return {"x": np.array([budget])}

    return Fitted({"a": law.a, "b": law.b, "c": law.c}, lambda data: law(data["x"]), free, law.notes, place)


def many(
    found: Fitted, data: Data, fixed: Mapping[str, float], y: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    """The laws of many sets of y; see Law.many."""
    return [_fitted(law, fixed) for law in power_laws(data["x"], y, counts, offset=fixed.get("c"))]


def _example() -> Example:
    law, flops = PowerLaw(1e3, 0.15, 1.7), np.geomspace(1e18, 1e21, 8)
    return Example({"a": law.a, "b": law.b, "c": law.c}, {"x": flops, "y": law(flops)}, 0.003)


LAW = Law(
    sentence="A power law of compute, tokens or parameters, with an offset that it never falls below.",
    formula="y = a x^-b + c",
    reads={"x": "flops", "y": "loss"},
    parameters={"a": "factor", "b": "exponent", "c": "offset"},
    fit=fit,
    fixable=("c",),
    many=many,
    example=_example,
)
