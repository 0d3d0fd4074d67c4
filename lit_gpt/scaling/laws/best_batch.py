"""The best batch of each token budget or size, and its power law."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.sweep_law import fitted, shown
from lit_gpt.scaling.sweeps import fit_optima, refit


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """Parabolas in ln(batch) at each x, and a weighted line through their lowest points; see fit_optima."""
    return shown(fit_optima(data["x"], data["batch"], data["loss"], constant=0.0), "batch")


def _many(
    before: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    return [fitted(one, "batch") for one in refit(data["x"], data["batch"], losses, counts, constant=0.0)]


def _example() -> Example:
    """Power Lines (arXiv:2505.13738): 0.0306 D^0.383 sequences of 2048 tokens."""
    tokens = np.repeat(2.5e9 * 2.0 ** np.arange(5), 6)
    best = 0.0306 * 2048 * tokens**0.383
    batch = best * np.tile(np.exp(np.linspace(-1.6, 1.4, 6)), 5)
    loss = 40 * tokens**-0.13 + 0.7 + 0.015 * np.log(batch / best) ** 2
    return Example({"a": 0.0306 * 2048, "b": 0.383}, {"x": tokens, "batch": batch, "loss": loss}, 0.002)


LAW = Law(
    sentence="The best batch of sweeps at several token budgets or sizes, and its power law over them.",
    formula="loss = k(x) ln(batch / best(x))^2 + m(x), best(x) = a x^b",
    reads={"x": "tokens", "batch": "batch", "loss": "loss"},
    parameters={"a": "factor", "b": "exponent"},
    fit=fit,
    designed=True,
    many=_many,
    example=_example,
)
