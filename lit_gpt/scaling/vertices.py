"""The optimum of each budget of an isoFLOP study with its interval, for figures and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lit_gpt.scaling.intervals import Spread, percentiles
from lit_gpt.scaling.law import Data
from lit_gpt.scaling.laws.isoflop import budgets_of, valleys


@dataclass(frozen=True)
class Vertex:
    """The size, tokens and least loss of a budget. intervals: of N, D and L; empty where nothing says the noise."""

    flops: float
    place: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


def vertices(data: Data, noise: Spread, samples: int, level: float) -> list[Vertex]:
    """Of runs with columns C, N, D and L, all of budgets with three sizes or more that have a minimum.

    The intervals are of the parabolas with new noise of the given size, as intervals.py has it.
    """
    budgets = budgets_of(data["C"])
    middle = valleys(data, budgets, data["L"][None])
    drawn = None
    if math.isfinite(noise.size) and samples:
        rng = np.random.default_rng(0)
        sizes = noise.sizes(samples, rng)
        drawn = valleys(data, budgets, data["L"] + sizes[:, None] * rng.standard_normal((samples, len(data["L"]))))
    found = []
    for i, budget in enumerate(budgets):
        place = {"N": math.exp(middle.ln_n[0, i]), "D": math.exp(middle.ln_d[0, i]), "L": float(middle.loss[0, i])}
        intervals = dict[str, tuple[float, float]]()
        if drawn is not None and (valid := drawn.curvature[:, i] > 0).any():
            ends = np.exp(drawn.ln_n[valid, i]), np.exp(drawn.ln_d[valid, i]), drawn.loss[valid, i]
            intervals = {name: percentiles(values, level) for name, values in zip("NDL", ends)}
        found.append(Vertex(budget.flops, place, intervals))
    return found
