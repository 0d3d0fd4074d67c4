"""The best learning rate with a constant that it does not fall below: best(x) = a x^b + c."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.sweep_law import fitted, shown
from lit_gpt.scaling.sweeps import fit_optima, refit


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """Parabolas in ln(rate) at each x, and fit_power_law through their lowest points."""
    return shown(fit_optima(data["x"], data["rate"], data["loss"], constant=None), "rate")


def _many(
    before: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    return [fitted(one, "rate") for one in refit(data["x"], data["rate"], losses, counts, constant=None)]


def _example() -> Example:
    tokens = np.repeat(np.geomspace(1e9, 1e12, 7), 6)
    best = 1e4 * tokens**-0.65 + 2e-3
    rate = best * np.tile(np.exp(np.linspace(-1.2, 1.0, 6)), 7)
    loss = 40 * tokens**-0.13 + 0.7 + 0.03 * np.log(rate / best) ** 2
    return Example({"b": -0.65, "c": 2e-3}, {"x": tokens, "rate": rate, "loss": loss}, 0.001)


LAW = Law(
    sentence="The best learning rate of sweeps at several sizes or budgets, as a power law that falls to a constant.",
    formula="loss = k(x) ln(rate / best(x))^2 + m(x), best(x) = a x^b + c",
    reads={"x": "tokens", "rate": "rate", "loss": "loss"},
    parameters={"a": "factor", "b": "exponent, not above 0", "c": "constant"},
    fit=fit,
    designed=True,
    many=_many,
    example=_example,
)
