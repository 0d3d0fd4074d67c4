"""The joint law of dense models and mixtures of experts over parameters, tokens and experts (arXiv:2502.05172)."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product

import numpy as np

from lit_gpt.scaling.experts import LUDZIEJEWSKI, joint_problem
from lit_gpt.scaling.law import Example, Law
from lit_gpt.scaling.sum_law import SumLaw

FITS = SumLaw(joint_problem, ("N", "D", "E"), "N, D and experts")
fit = FITS.fit


def _example() -> Example:
    sizes, budgets = np.geomspace(5e7, 2e9, 4), np.geomspace(1e9, 5e10, 4)
    n, d, experts = np.array(list(product(sizes, budgets, (1, 2, 8, 32)))).T
    return Example(asdict(LUDZIEJEWSKI), {"N": n, "D": d, "E": experts, "L": LUDZIEJEWSKI(n, d, experts)}, 0.003)


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
    many=FITS.many,
    example=_example,
)
