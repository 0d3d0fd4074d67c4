"""The law of mixtures of experts over parameters, tokens and granularity (arXiv:2402.07871)."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product

import numpy as np

from lit_gpt.scaling.experts import KRAJEWSKI, granular_problem
from lit_gpt.scaling.law import Example, Law
from lit_gpt.scaling.sum_law import SumLaw

FITS = SumLaw(granular_problem, ("N", "D", "G"), "N, D and G")
fit = FITS.fit


def _example() -> Example:
    sizes, budgets = np.geomspace(5e7, 2e9, 4), np.geomspace(1e9, 5e10, 4)
    n, d, granularity = np.array(list(product(sizes, budgets, (1, 2, 4, 16)))).T
    loss = KRAJEWSKI(n, d, granularity)
    return Example(asdict(KRAJEWSKI), {"N": n, "D": d, "G": granularity, "L": loss}, 0.002)


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
    many=FITS.many,
    example=_example,
)
