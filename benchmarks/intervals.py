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

NORMAL = 1.96
# Quantiles 0.975 of Student's t by degrees of freedom, as tables have them; beyond these the normal one will do.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 10: 2.23}
Interval = tuple[float, float]  # the middle, and half of the interval
Row = Mapping[str, Any]  # a run: name, family, and figures, each (value, standard error over the examples or None)


def spreads(rows: Sequence[Row], figure: str) -> tuple[float, int]:
    """The standard deviation of seeds, pooled over families, and its degrees of freedom."""
    squares, free = 0.0, 0
    for family in {row["family"] for row in rows}:
        values = [row["figures"][figure][0] for row in rows if row["family"] == family and figure in row["figures"]]
        if len(values) > 1:
            squares, free = squares + statistics.variance(values) * (len(values) - 1), free + len(values) - 1
    return (math.sqrt(squares / free), free) if free else (0.0, 0)


def half(error: float, spread: tuple[float, int], shares: float) -> float:
    """Half of an interval. error: over examples. shares: 1 / seeds, of a difference the sum of both."""
    deviation, free = spread
    seeds = STUDENT.get(free, NORMAL) * deviation * math.sqrt(shares) if free else 0.0
    return math.hypot(NORMAL * error, seeds)


def of_families(rows: Sequence[Row]) -> dict[str, dict[str, Interval]]:
    """Family -> figure -> the mean over its seeds, and half of the interval."""
    found: dict[str, dict[str, Interval]] = {}
    for family in dict.fromkeys(row["family"] for row in rows):
        own = [row["figures"] for row in rows if row["family"] == family]
        for figure in own[0]:
            pairs = [figures[figure] for figures in own if figure in figures]
            error = math.sqrt(statistics.fmean([(e or 0.0) ** 2 for _, e in pairs]))  # seeds share the examples
            middle = statistics.fmean([value for value, _ in pairs])
            size = half(error, spreads(rows, figure), 1 / len(pairs))
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
            size = half(error, spreads(rows, figure), 1 / len(own) + 1 / len(base))
            found.setdefault(family, {})[figure] = (more, size)
    return found
