"""A fitted law as the report of a study shows it: numbers with intervals, points with residuals, a line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.lab.fit_report import Report, band, judge
from lit_gpt.lab.fit_runs import sample
from lit_gpt.lab.fit_steps import words
from lit_gpt.lab.repeats import groups_of
from lit_gpt.lab.runs import FINISHED, Run, column
from lit_gpt.scaling.intervals import LEVEL, residuals
from lit_gpt.scaling.laws import law_named

POINTS = 60  # of a drawn line
BEYOND = 3.0  # how far a line goes on beyond the last run, as a factor
SAME = 0.02  # relative difference in compute below which runs have one budget: they end at whole batches


def usable(runs: Sequence[Run], columns: Sequence[str]) -> list[Run]:
    """The finished runs that have these columns, and saw no token twice, which the laws are not for.

    Raises UserError where none is left.
    """
    kept = [run for run in runs if run.state == FINISHED and all(name in run.numbers for name in columns)]
    fresh = [run for run in kept if run.numbers.get("epochs", 0.0) <= 1]
    if not fresh:
        why = "saw its tokens once" if kept else f"is finished and has {', '.join(columns)}"
        raise UserError(f"None of {len(runs)} runs {why}, so there is nothing to fit.")
    return fresh


def lowest_of_each_budget(runs: Sequence[Run], given: str = "flops", explained: str = "loss") -> list[Run]:
    """Of each budget, the runs of the configuration with the lowest mean; others are on no curve of lowest losses."""
    budgets: list[list[Run]] = []
    for run in sorted(usable(runs, [given, explained]), key=lambda run: run.numbers[given]):
        if not budgets or run.numbers[given] > budgets[-1][0].numbers[given] * (1 + SAME):
            budgets.append([])
        budgets[-1].append(run)
    lowest = (min(groups_of(budget), key=lambda group: column(group, explained).mean()) for budget in budgets)
    return [run for group in lowest for run in group]


def fit_of(
    runs: Sequence[Run], name: str, reads: Mapping[str, str], fixed: Mapping[str, float], samples: int
) -> dict[str, Any]:
    """The law of this name, as JSON values. reads: symbol -> column, where it is not the law's own.

    Raises UserError where the runs cannot carry it.
    """
    law = law_named(name)
    columns = {**law.reads, **reads}
    found = judge(name, law, sample(law, usable(runs, list(columns.values())), columns), fixed, None, samples, LEVEL)
    tables = found.fitted.tables.items()
    return {
        "law": name,
        "sentence": law.sentence,
        "formula": law.formula,
        "reads": [{"symbol": s, "column": c, "words": words(c)} for s, c in found.sample.reads.items()],
        "numbers": _numbers(found),
        "level": LEVEL,
        "way": found.draws.way if found.draws else "",
        "notes": list(found.notes),
        "lack": found.lack.words if found.lack else "",
        "tables": [{"title": title, "rows": [list(map(str, row)) for row in rows]} for title, rows in tables],
        "relative": law.relative,
        "points": _points(found),
        **({"line": _line(found)} if len(law.given) == 1 and not law.curves else {}),
    }


def _numbers(found: Report) -> list[dict[str, Any]]:
    """Each with its interval, and how far it goes where any one run is left out."""
    intervals, numbers = found.draws.intervals(LEVEL) if found.draws else {}, []
    for name, value in found.fitted.numbers.items():
        low, high = intervals.get(name, (math.nan, math.nan))
        left = [fit.numbers[name] for fit in found.without.values() if fit]
        without = [min(left), max(left)] if left else None
        said = found.law.parameters.get(name, "")
        numbers.append({"name": name, "words": said, "value": value, "low": low, "high": high, "without": without})
    return numbers


def _points(found: Report) -> dict[str, Any]:
    law, points = found.law, found.points
    y = points[law.explains]
    names = found.sample.names if len(found.sample.names) == len(y) else []
    left = residuals(law, found.fitted, points)
    return {"names": names, "x": points[law.given[0]], "y": y, "residual": left[np.isfinite(left)]}


def _line(found: Report) -> dict[str, Any]:
    """The law, and the interval of a new run, where it has them."""
    (symbol,) = found.law.given
    x = found.points[symbol]
    at = np.geomspace(float(x.min()) / 1.2, float(x.max()) * BEYOND, POINTS)
    y, low, high = band(found, {symbol: at})
    return {"x": at, "y": y, "low": low if found.draws else None, "high": high if found.draws else None}
