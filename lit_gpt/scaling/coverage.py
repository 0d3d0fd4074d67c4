"""How often the interval of a law holds the truth: fits to draws of runs whose numbers are known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lit_gpt.scaling.intervals import LEVEL, draw, noise_of, noisy, percentiles, prediction
from lit_gpt.scaling.law import Example, Law

NORMAL = 1.959964  # quantile 0.975 of the normal distribution
NEXT = "a new run"  # the row of what runs of other seeds at the same places show


@dataclass(frozen=True)
class Covered:
    """held of tried intervals hold the true number. bias, spread: mean and standard deviation of fit - truth.

    Both are shares of the truth. Of new runs, tried are the draws, and held their mean share inside the interval.
    """

    true: float
    held: float
    tried: int
    bias: float
    spread: float

    @property
    def interval(self) -> tuple[float, float]:
        """Of the share that holds: 95%, binomial (Wilson 1927)."""
        n, share, z = self.tried, self.held / self.tried, NORMAL
        middle, half = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
        return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def coverage(law: Law, draws: int, samples: int, level: float = LEVEL, seed: int = 0) -> dict[str, Covered]:
    """Number -> how often its interval holds the truth, for the numbers of the law's example, and NEXT.

    draws: sets of runs, each with noise of its own; samples: of the resampling of each.
    """
    assert law.example is not None
    example, rng = law.example(), np.random.default_rng(seed)
    held, found = dict.fromkeys((*example.numbers, NEXT), 0.0), {name: list[float]() for name in example.numbers}
    for i in range(draws):
        inside, numbers, share = _one(law, example, rng, samples, level, i)
        for name in example.numbers:
            held[name] += inside[name]
            found[name].append(numbers[name] / example.numbers[name] - 1)
        held[NEXT] += share
    rows = {
        name: Covered(true, held[name], draws, float(np.mean(found[name])), float(np.std(found[name])))
        for name, true in example.numbers.items()
    }
    return {**rows, NEXT: Covered(math.nan, held[NEXT], draws, math.nan, math.nan)}


def _one(
    law: Law, example: Example, rng: np.random.Generator, samples: int, level: float, seed: int
) -> tuple[dict[str, bool], dict[str, float], float]:
    """Of one draw: whether each interval holds, what was fitted, and the share of new runs inside their interval."""
    said = example.data[law.explains]
    by, new = example.noise * rng.standard_normal((2, len(said)))
    data = {**example.data, law.explains: noisy(law, said, by)}
    fitted = law.fit(data, example.fixed)
    drawn = draw(law, fitted, data, example.fixed, noise_of(law, fitted, data), samples, seed)
    inside = {}
    for name, true in example.numbers.items():
        low, high = percentiles(np.array([fit.numbers[name] for fit in drawn.fits]), level)
        inside[name] = low <= true <= high
    low, high = prediction(law, drawn, example.data, level, seed)
    heard, seen = np.isfinite(low), noisy(law, said, new)
    share = float(np.mean((low <= seen)[heard] & (seen <= high)[heard]))
    return inside, {name: float(fitted.numbers[name]) for name in example.numbers}, share
