"""A law fitted to runs, with all that a reader needs to judge it: intervals, residuals, lack of fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.lab.repeats import groups_of
from lit_gpt.lab.runs import COLUMNS, FINISHED, Run, column
from lit_gpt.scaling.intervals import LEVEL, Draws, draw, lack_of_fit, noise_of, prediction, residuals, without_each
from lit_gpt.scaling.law import Data, Fitted, Law
from lit_gpt.scaling.laws import law_named

POINTS = 60  # of a drawn line
BEYOND = 3.0  # how far a line goes on beyond the last run, as a factor
SAME = 0.02  # relative difference in compute below which runs have one budget: they end at whole batches


def lowest_of_each_budget(runs: Sequence[Run], given: str = "flops", explained: str = "loss") -> list[Run]:
    """Of each budget, the runs of the configuration with the lowest mean; others are on no curve of best losses."""
    known = [r for r in runs if r.state == FINISHED and given in r.numbers and explained in r.numbers]
    budgets: list[list[Run]] = []
    for run in sorted(known, key=lambda run: run.numbers[given]):
        if not budgets or run.numbers[given] > budgets[-1][0].numbers[given] * (1 + SAME):
            budgets.append([])
        budgets[-1].append(run)
    return [
        run for budget in budgets for run in min(groups_of(budget), key=lambda g: float(column(g, explained).mean()))
    ]


def fit_of(
    runs: Sequence[Run], name: str, reads: Mapping[str, str] | None = None, fixed: Mapping[str, float] | None = None,
    samples: int = 1000,
) -> dict[str, Any]:  # fmt: skip
    """The law of this name, as JSON values. reads: symbol -> column, where it is not the law's own.

    Raises UserError where the runs cannot carry it.
    """
    law, fixed = law_named(name), fixed or {}
    if law.curves:
        raise UserError(f"The law {name} reads whole curves. Fit it with python -m lit_gpt.tools.fit.")
    law.check_fixed(fixed)
    columns = {**law.reads, **(reads or {})}
    used = [run for run in runs if run.state == FINISHED and all(c in run.numbers for c in columns.values())]
    if not used:
        raise UserError(f"No finished run has {', '.join(columns.values())}, which the law {name} reads.")
    data = {symbol: column(used, c) for symbol, c in columns.items()}
    fitted = law.fit(data, fixed)
    draws, notes = _draws(law, fitted, data, fixed, samples)
    repeated = max((run.numbers.get("epochs", 0.0) for run in used), default=0.0)
    if repeated > 1:
        notes.append(
            f"some runs saw tokens more than once (up to {repeated:.2g} passes), which laws of one pass are not for"
        )
    return {
        "law": name,
        "sentence": law.sentence,
        "formula": law.formula,
        "reads": [{"symbol": s, "column": c, "words": COLUMNS.get(c, c)} for s, c in columns.items()],
        "numbers": _numbers(law, fitted, draws, without_each(law, fitted, data, fixed)),
        "level": LEVEL,
        "way": draws.way if draws else "",
        "notes": [*fitted.notes, *notes],
        "lack": getattr(lack_of_fit(law, fitted, data), "words", ""),
        "tables": [{"title": t, "rows": [list(map(str, row)) for row in rows]} for t, rows in fitted.tables.items()],
        **_drawn(law, fitted, draws, data, used),
    }  # fmt: skip


def _draws(
    law: Law, fitted: Fitted, data: Data, fixed: Mapping[str, float], samples: int
) -> tuple[Draws | None, list[str]]:
    """The law of resampled data, None where there are none; and what to know about that."""
    try:
        draws = draw(law, fitted, data, fixed, noise_of(law, fitted, data), samples)
    except UserError as error:
        return None, [str(error)]
    return draws, list(draws.notes)


def _numbers(law: Law, fitted: Fitted, draws: Draws | None, without: Sequence[Fitted | None]) -> list[dict[str, Any]]:
    intervals = draws.intervals() if draws else {}
    found = []
    for name, value in fitted.numbers.items():
        low, high = intervals.get(name, (math.nan, math.nan))
        left = [fit.numbers[name] for fit in without if fit]
        found.append({
            "name": name, "words": law.parameters.get(name, ""), "value": value, "low": low, "high": high,
            "without": [min(left), max(left)] if left else None,
        })  # fmt: skip
    return found


def _drawn(law: Law, fitted: Fitted, draws: Draws | None, data: Data, used: Sequence[Run]) -> dict[str, Any]:
    """Points with their residuals; and a line with the interval of a new run, of a law over one column."""
    points = fitted.points or data
    names = [run.name for run in used] if len(points[law.explains]) == len(used) else []
    x = points[law.given[0]]
    found: dict[str, Any] = {
        "relative": law.relative,
        "points": {"names": names, "x": x, "y": points[law.explains], "residual": residuals(law, fitted, data)},
    }
    if len(law.given) == 1 and float(x.min()) > 0:
        at = {law.given[0]: np.geomspace(float(x.min()) / 1.2, float(x.max()) * BEYOND, POINTS)}
        low, high = prediction(law, draws, at) if draws else (None, None)
        found["line"] = {"x": at[law.given[0]], "y": fitted.curve(at), "low": low, "high": high}
    return found
