"""The best learning rate of each size, token budget or batch, and its power law."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.sweep_law import fitted, shown
from lit_gpt.scaling.sweeps import fit_optima, refit


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """Parabolas in ln(rate) at each x, and a weighted line through their lowest points; see fit_optima."""
    return shown(fit_optima(data["x"], data["rate"], data["loss"], constant=fixed.get("c", 0.0)), "rate")


def _many(
    before: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    return [fitted(one, "rate") for one in refit(data["x"], data["rate"], losses, counts, constant=fixed.get("c", 0.0))]


def example() -> Example:
    """HyperP's law (arXiv:2603.28743) over 10.4 to 166.4 billion tokens."""
    tokens = np.repeat(10.4e9 * 2.0 ** np.arange(5), 6)
    best = 24.27 * tokens**-0.32
    rate = best * np.tile(np.exp(np.linspace(-1.2, 1.0, 6)), 5)
    loss = 40 * tokens**-0.13 + 0.7 + 0.03 * np.log(rate / best) ** 2
    return Example({"a": 24.27, "b": -0.32}, {"x": tokens, "rate": rate, "loss": loss}, 0.002)


LAW = Law(
    sentence="The best learning rate of sweeps at several sizes, budgets or batches, and its power law over them.",
    formula="loss = k(x) ln(rate / best(x))^2 + m(x), best(x) = a x^b + c",
    reads={"x": "tokens", "rate": "rate", "loss": "loss"},
    parameters={"a": "factor", "b": "exponent", "c": "constant, 0 unless it is given"},
    fit=fit,
    fixable=("c",),
    designed=True,
    many=_many,
    example=example,
)
