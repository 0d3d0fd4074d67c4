"""Two stages to a task's accuracy: compute to the log-likelihood of right answers, and that to accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_gpt.scaling.fit import PowerLaw, fit_power_law
from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.two_stages import Sigmoid, fit_sigmoid


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """A power law of the soft figure over x, and a sigmoid of the hard one over the soft one.

    fixed: floor, the accuracy of guessing; top, the accuracy that is never exceeded; c, the soft figure's offset.
    """
    first = fit_power_law(data["x"], data["soft"], offset=fixed.get("c"))
    second = fit_sigmoid(data["soft"], data["hard"], fixed.get("floor"), fixed.get("top", 1.0))

    def place(x: float) -> Data:
        return {"x": np.array([x]), "soft": first(np.array([x]))}

    free = 2 + ("floor" not in fixed)
    return Fitted(
        _numbers(first, second), lambda data: second(data["soft"]), free, (*first.notes, *second.notes), place
    )


def _numbers(first: PowerLaw, second: Sigmoid) -> dict[str, float]:
    line = {"a": first.a, "b": first.b, "c": first.c}
    return {**line, "slope": second.slope, "middle": second.middle, "floor": second.floor}


def _example() -> Example:
    first, second, compute = PowerLaw(60.0, 0.1, 0.3), Sigmoid(5.0, 0.95, 0.25), np.geomspace(1e18, 1e23, 16)
    soft = first(compute)
    true = {"slope": 5.0, "middle": 0.95}
    return Example(true, {"x": compute, "soft": soft, "hard": second(soft)}, 0.01, {"floor": 0.25})


LAW = Law(
    sentence="A task's accuracy in two stages: compute to the log-likelihood of right answers, and that to accuracy.",
    formula="soft = a x^-b + c, hard = floor + (top - floor) / (1 + exp(slope (soft - middle)))",
    reads={"x": "flops", "soft": "soft", "hard": "hard"},
    parameters={
        "a": "factor of the soft figure",
        "b": "exponent of the soft figure",
        "c": "offset of the soft figure",
        "slope": "how steep the sigmoid is",
        "middle": "soft figure at the middle of the sigmoid",
        "floor": "accuracy of guessing, such as 0.25 of four answers",
        "top": "accuracy that is never exceeded; 1 unless it is given",
    },
    fit=fit,
    fixable=("floor", "top", "c"),
    example=_example,
)
