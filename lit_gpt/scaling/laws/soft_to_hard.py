"""Two stages to a task's accuracy: compute to the log-likelihood of right answers, and that to accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lit_gpt.scaling.fit import PowerLaw, fit_power_law, power_laws
from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.two_stages import Sigmoid, fit_sigmoid, refit


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """A power law of the soft figure over x, and a sigmoid of the hard one over the soft one.

    fixed: floor, the accuracy of guessing; top, the accuracy that is never exceeded; c, the soft figure's offset.
    """
    first, second = _stages(data, fixed)
    return replace(_fitted(first, second, fixed), notes=(*first.notes, *second.notes))


def _stages(data: Data, fixed: Mapping[str, float]) -> tuple[PowerLaw, Sigmoid]:
    first = fit_power_law(data["x"], data["soft"], offset=fixed.get("c"))
    return first, fit_sigmoid(data["soft"], data["hard"], fixed.get("floor"), fixed.get("top", 1.0))


def _many(
    fitted: Fitted, data: Data, fixed: Mapping[str, float], hard: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    """Both stages with new noise of their own: the soft figures differ from their law by their residuals' spread.

    So does that of a new run, of which a budget says nothing else.
    """
    first, second = _stages(data, fixed)
    soft, rng = data["soft"], np.random.default_rng(0)
    freedom = max(len(soft) - 3 + ("c" in fixed), 1)
    spread = np.sqrt(((soft - first(data["x"])) ** 2).sum() / rng.chisquare(freedom, (len(hard), 1)))
    moved = np.maximum(first(data["x"]) + spread * rng.standard_normal(hard.shape), 1e-9)
    firsts = power_laws(data["x"], moved, counts, offset=fixed.get("c"))
    seconds = refit(second, soft, hard, counts, "floor" in fixed)
    misses = spread[:, 0] * rng.standard_normal(len(hard))
    return [_fitted(one, two, fixed, miss) for one, two, miss in zip(firsts, seconds, misses.tolist())]


def _fitted(first: PowerLaw, second: Sigmoid, fixed: Mapping[str, float], miss: float = 0.0) -> Fitted:
    """miss: how far the soft figure of a new run is from its law."""

    def curve(data: Data) -> np.ndarray:
        return second(data["soft"] if "soft" in data else first(data["x"]))

    def run(data: Data) -> np.ndarray:
        return second(data["soft"] if "soft" in data else first(data["x"]) + miss)

    def place(x: float) -> Data:
        return {"x": np.array([x])}

    return Fitted(_numbers(first, second), curve, 3 - ("floor" in fixed), place=place, run=run)


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
    designed=True,
    many=_many,
    example=_example,
)
