"""Power Lines (arXiv:2505.13738): the best timescale of AdamW's average of updates, by tokens per parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lit_gpt.scaling.decay import POWER_LINES, shrink_per_step
from lit_gpt.scaling.law import Data, Example, Fitted, Law
from lit_gpt.scaling.sweep_law import fitted
from lit_gpt.scaling.sweeps import Optima, fit_optima, refit


def timescale(data: Data) -> np.ndarray:
    """tau = B / (rate decay D): the share of the run's tokens over which AdamW's weights average their updates.

    The decay is that of AdamW: each step multiplies weights by 1 - rate * decay.
    """
    return data["batch"] / (data["rate"] * data["decay"] * data["tokens"])


def best_decay(
    batch: float, rate: float, tokens: float, parameters: float, law: tuple[float, float] = POWER_LINES
) -> float:
    """The weight decay whose timescale is the best one. batch and tokens in tokens."""
    return shrink_per_step(batch, tokens, parameters, law) / rate


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """Parabolas in ln(tau) at each number of tokens per parameter, and a line through their lowest points."""
    found = fit_optima(data["tokens"] / data["parameters"], timescale(data), data["loss"])
    return replace(_fitted(found), tables=found.table("tau", "tokens per parameter"))


def _many(
    before: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    return [_fitted(one) for one in refit(data["tokens"] / data["parameters"], timescale(data), losses, counts)]


def _fitted(found: Optima) -> Fitted:
    of_tau = fitted(found, "tau")

    def curve(data: Data) -> np.ndarray:
        return of_tau.curve({"x": data["tokens"] / data["parameters"], "tau": timescale(data)})

    return replace(of_tau, curve=curve, place=None)


def _example() -> Example:
    size, per = np.full(30, 610e6), np.repeat([5.0, 10.0, 20.0, 80.0, 320.0], 6)
    tokens, rate, batch = size * per, np.full(30, 8e-3), np.full(30, 2.0**19)
    tau = 1.084 * per**-0.527 * np.tile(np.exp(np.linspace(-1.5, 1.3, 6)), 5)
    decay = batch / (rate * tokens * tau)
    loss = 40 * tokens**-0.13 + 0.7 + 0.02 * np.log(tau / (1.084 * per**-0.527)) ** 2
    columns = {"tokens": tokens, "parameters": size, "batch": batch, "rate": rate, "decay": decay, "loss": loss}
    return Example({"a": 1.084, "b": -0.527}, columns, 0.002)


LAW = Law(
    sentence="The best timescale of AdamW's decay, the share of a run that it averages, by tokens per parameter.",
    formula="tau = batch / (rate decay tokens), loss = k ln(tau / best)^2 + m, best = a (tokens / parameters)^b",
    reads={
        "tokens": "tokens",
        "parameters": "parameters",
        "batch": "batch",
        "rate": "rate",
        "decay": "weight_decay",
        "loss": "loss",
    },
    parameters={"a": "factor", "b": "exponent"},
    fit=fit,
    designed=True,
    many=_many,
    example=_example,
)
