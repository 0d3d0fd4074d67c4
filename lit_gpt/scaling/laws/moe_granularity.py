"""The law of mixtures of experts over parameters, tokens and granularity (arXiv:2402.07871)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np

from lit_gpt.scaling.experts import KRAJEWSKI, Granular, granular_problem
from lit_gpt.scaling.law import Data, Example, Fitted, Law

NAMES = ("a", "alpha", "b", "beta", "g", "gamma", "c")
OPEN = "these runs leave the numbers open, as other laws fit as well: add runs with other N, D and G"


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """The numbers by Huber(0.01) of ln(predicted) - ln(loss); see granular_problem."""
    problem = granular_problem(data["N"], data["D"], data["G"])
    point = problem.fit(data["L"])
    return _fitted(problem.read(point), (OPEN,) if problem.undetermined(point) else ())


def _many(
    fitted: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    problem = granular_problem(data["N"], data["D"], data["G"])
    return [_fitted(law) for law in problem.refit(problem.fit(data["L"]), losses, counts)]


def _fitted(law: Granular, notes: tuple[str, ...] = ()) -> Fitted:
    def curve(data: Data) -> np.ndarray:
        return law(data["N"], data["D"], data["G"])

    return Fitted({name: getattr(law, name) for name in NAMES}, curve, len(NAMES), notes)


def _example() -> Example:
    sizes, budgets = np.geomspace(5e7, 2e9, 4), np.geomspace(1e9, 5e10, 4)
    n, d, granularity = np.array(list(product(sizes, budgets, (1, 2, 4, 16)))).T
    loss = KRAJEWSKI(n, d, granularity)
    true = {name: getattr(KRAJEWSKI, name) for name in NAMES}
    return Example(true, {"N": n, "D": d, "G": granularity, "L": loss}, 0.002)


LAW = Law(
    sentence="The loss of mixtures of experts of one sparsity over size, tokens and granularity.",
    formula="L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
    reads={"N": "parameters_total", "D": "tokens", "G": "granularity", "L": "loss"},
    parameters={
        "a": "factor of size",
        "alpha": "exponent of size",
        "b": "factor of tokens",
        "beta": "exponent of tokens",
        "g": "factor of granularity",
        "gamma": "exponent of granularity",
        "c": "offset",
    },
    fit=fit,
    relative=True,
    many=_many,
    example=_example,
)
