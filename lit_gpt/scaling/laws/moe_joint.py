"""The joint law of dense models and mixtures of experts over parameters, tokens and experts (arXiv:2502.05172)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np

from lit_gpt.scaling.experts import LUDZIEJEWSKI, Joint, joint_problem
from lit_gpt.scaling.law import Data, Example, Fitted, Law

NAMES = ("a", "alpha", "delta", "gamma", "b", "beta", "omega", "zeta", "c")
OPEN = "these runs leave the numbers open, as other laws fit as well: add runs with other N, D and experts"


def fit(data: Data, fixed: Mapping[str, float]) -> Fitted:
    """The numbers by Huber(0.01) of ln(predicted) - ln(loss); see joint_problem."""
    problem = joint_problem(data["N"], data["D"], data["E"])
    point = problem.fit(data["L"])
    return _fitted(problem.read(point), (OPEN,) if problem.undetermined(point) else ())


def _many(
    fitted: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    problem = joint_problem(data["N"], data["D"], data["E"])
    return [_fitted(law) for law in problem.refit(problem.fit(data["L"]), losses, counts)]


def _fitted(law: Joint, notes: tuple[str, ...] = ()) -> Fitted:
    def curve(data: Data) -> np.ndarray:
        return law(data["N"], data["D"], data["E"])

    return Fitted({name: getattr(law, name) for name in NAMES}, curve, len(NAMES), notes)


def _example() -> Example:
    sizes, budgets = np.geomspace(5e7, 2e9, 4), np.geomspace(1e9, 5e10, 4)
    n, d, experts = np.array(list(product(sizes, budgets, (1, 2, 8, 32)))).T
    true = {name: getattr(LUDZIEJEWSKI, name) for name in NAMES}
    return Example(true, {"N": n, "D": d, "E": experts, "L": LUDZIEJEWSKI(n, d, experts)}, 0.003)


LAW = Law(
    sentence="The loss of dense models and mixtures of experts over active parameters, tokens and experts.",
    formula="L = a F^delta N^(alpha + gamma ln F) + b F^omega D^(beta + zeta ln F) + c, "
    "1/F = 1/(E - 1 + 1/(1/2.0732 - 1/290.4521)) + 1/290.4521",
    reads={"N": "parameters", "D": "tokens", "E": "sparsity", "L": "loss"},
    parameters={
        "a": "factor of size",
        "alpha": "exponent of size",
        "delta": "exponent of experts beside size",
        "gamma": "how experts change the exponent of size",
        "b": "factor of tokens",
        "beta": "exponent of tokens",
        "omega": "exponent of experts beside tokens",
        "zeta": "how experts change the exponent of tokens",
        "c": "offset",
    },
    fit=fit,
    relative=True,
    many=_many,
    example=_example,
)
