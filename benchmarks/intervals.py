"""Intervals over examples and seeds, for models that were asked the same.

An interval is 95%; half of it is the root of (1.96 e)^2 + (t s)^2. e is the standard error over the examples, which the
seeds share, so that more seeds do not lessen it. s is the standard error of the mean over seeds, from the spread of
seeds pooled over the families, and t is of that many degrees of freedom. A difference is taken example by example, and
its e is that of these differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_gpt.scaling.noise import Noise, pooled, student

NORMAL = 1.96  # the quantile 0.975 of the normal distribution, for the many examples
Interval = tuple[float, float]  # the middle, and half of the interval
Row = Mapping[str, Any]  # a run: name, family, and figures, each (value, standard error over the examples or None)


def spreads(rows: Sequence[Row], figure: str) -> Noise:
    """The noise of seeds, pooled over families."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if figure in row["figures"]:
            values.setdefault(row["family"], []).append(row["figures"][figure][0])
    return pooled(values.values())


def half(error: float, noise: Noise, *seeds: int) -> float:
    """Half of an interval. error: over examples. seeds: of the family, of a difference those of both."""
    return math.hypot(NORMAL * error, student(noise.free) * noise.error(*seeds) if noise.free else 0.0)


def of_families(rows: Sequence[Row]) -> dict[str, dict[str, Interval]]:
    """Family -> figure -> the mean over its seeds, and half of the interval."""
    found: dict[str, dict[str, Interval]] = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        own = [row["figures"] for row in rows if row["family"] == family]
        for figure in own[0]:
            pairs = [figures[figure] for figures in own if figure in figures]
            error = math.sqrt(statistics.fmean([(e or 0.0) ** 2 for _, e in pairs]))  # seeds share the examples
            middle = statistics.fmean([value for value, _ in pairs])
            size = half(error, spreads(rows, figure), len(pairs))
            found.setdefault(family, {})[figure] = (middle, size)
    return found


def differences(rows: Sequence[Row], answers: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, dict[str, Interval]]:
    """Family -> figure -> how much more it is than the first family's; the first is left out.

    answers: run -> figure -> its value for every example. A figure without them has seeds only.
    """
    known, names = of_families(rows), dict[str, list[str]]()
    for row in rows:
        names.setdefault(row["family"], []).append(row["name"])
    found: dict[str, dict[str, Interval]] = {}
    for family in list(names)[1:]:
        own, base = names[family], names[next(iter(names))]
        for figure in known[family].keys() & known[next(iter(names))].keys():
            sides = [[answers[n][figure] for n in some if figure in answers.get(n, {})] for some in (own, base)]
            error, more = 0.0, known[family][figure][0] - known[next(iter(names))][figure][0]
            if all(sides):
                gaps = np.mean(sides[0], axis=0) - np.mean(sides[1], axis=0)
                more = float(gaps.mean())
                error = float(gaps.std(ddof=1) / math.sqrt(len(gaps))) if len(gaps) > 1 else 0.0
            size = half(error, spreads(rows, figure), len(own), len(base))
            found.setdefault(family, {})[figure] = (more, size)
    return found
