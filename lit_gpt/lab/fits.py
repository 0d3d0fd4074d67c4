"""A fitted law as the report of a study shows it: numbers with intervals, points with residuals, a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_gpt.lab.fit_lines import lines_of, words_of_x, x_of
from lit_gpt.lab.fit_report import Report, judge
from lit_gpt.lab.fit_runs import lowest_per, needed_by, sample, usable
from lit_gpt.lab.fit_steps import words
from lit_gpt.lab.runs import Run
from lit_gpt.scaling.intervals import LEVEL, residuals
from lit_gpt.scaling.laws import law_named

BEYOND = 3.0  # how far a line goes on beyond the last run, as a factor
BEST = ("power",)  # laws of the lowest loss of each budget


def fit_of(
    runs: Sequence[Run], name: str, reads: Mapping[str, str], fixed: Mapping[str, float], samples: int
) -> dict[str, Any]:
    """The law of this name, as JSON values. reads: symbol -> column, where it is not the law's own.

    A law of BEST is of the lowest losses alone. Raises UserError where the runs cannot carry it.
    """
    law = law_named(name)
    columns = {**law.reads, **reads}
    kept, left = usable(runs, needed_by(law, columns), unfinished=law.every_step)
    if name in BEST:
        kept, said = lowest_per(kept, columns[law.given[0]], columns[law.explains])
        left += said
    found = judge(name, law, sample(law, kept, columns), fixed, None, samples, LEVEL)
    tables = found.fitted.tables.items()
    return {
        "law": name,
        "sentence": law.sentence,
        "formula": law.formula,
        "reads": [{"symbol": s, "column": c, "words": words(c)} for s, c in found.sample.reads.items()],
        "numbers": _numbers(found),
        "level": LEVEL,
        "way": found.draws.way if found.draws else "",
        "notes": [*left, *found.notes],
        "lack": found.lack.words if found.lack else "",
        "tables": [{"title": title, "rows": [list(map(str, row)) for row in rows]} for title, rows in tables],
        "relative": law.relative,
        "points": _points(found),
        "axis": words_of_x(found),
        "lines": _lines(found),
    }


def _numbers(found: Report) -> list[dict[str, Any]]:
    """Each with its interval, and how far it goes where any one run is left out; of those that were given, neither."""
    intervals, numbers = found.draws.intervals(LEVEL) if found.draws else {}, []
    for name, value in found.fitted.numbers.items():
        free, said = name not in found.fixed, found.law.parameters.get(name, "")
        low, high = intervals.get(name, (math.nan, math.nan)) if free else (math.nan, math.nan)
        left = [fit.numbers[name] for fit in found.without.values() if fit]
        without = [min(left), max(left)] if left and free else None
        said = said if free else f"{said} (given)"
        numbers.append({"name": name, "words": said, "value": value, "low": low, "high": high, "without": without})
    return numbers


def _points(found: Report) -> dict[str, Any]:
    points, y = found.points, found.law.explains
    left = residuals(found.law, found.fitted, points)
    return {"names": found.names, "x": x_of(found, points), "y": points[y], "residual": left[np.isfinite(left)]}


def _lines(found: Report) -> list[dict[str, Any]]:
    """With the interval of a new run, where there is one. Of a law of one column they go on beyond the last run."""
    (symbol, *others), x = found.law.given, found.points[found.law.given[0]]
    ends = np.array([x.min() / 1.2, x.max() * BEYOND])
    lines = lines_of(found, [] if others or found.law.curves else [{symbol: ends}])
    band = {} if found.draws else {"low": None, "high": None}
    return [{**line._asdict(), **band} for line in lines]
