"""A law fitted to runs with all that belongs to it, and as JSON. fit_text.py has it in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.lab.fit_steps import Sample, words
from lit_gpt.metrics.summary import jsonable
from lit_gpt.scaling.intervals import (
    Draws,
    LackOfFit,
    Spread,
    check_samples,
    draw,
    lack_of_fit,
    noise_of,
    percentiles,
    prediction,
    residuals,
    without_each,
)
from lit_gpt.scaling.law import RUN, Data, Fitted, Law


@dataclass(frozen=True)
class Guess:
    """What a law says of a place. low, high: of one run there, NaN without intervals. spread: of the law itself there.

    at_low, at_high: of the places that resampled laws choose for the budget, by symbol.
    """

    place: Mapping[str, float]
    loss: float
    low: float
    high: float
    spread: tuple[float, float]
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    budget: float | None = None


@dataclass(frozen=True)
class Report:
    """One fit. draws: None where there are no intervals; notes say why."""

    name: str
    law: Law
    sample: Sample
    fixed: Mapping[str, float]
    fitted: Fitted
    noise: Spread
    draws: Draws | None
    without: Mapping[str, Fitted | None]
    lack: LackOfFit | None
    notes: tuple[str, ...]
    level: float

    @property
    def points(self) -> Data:
        """What the law was fitted to and says something of; intervals.residuals are of the same points."""
        points, heard = self.fitted.points or self.sample.data, self._heard
        return {symbol: values[heard] for symbol, values in points.items()}

    @property
    def names(self) -> list[str]:
        """The run of each of these points; "" where a point is of none, such as of an averaged curve."""
        data, symbols = self.sample.data, list(self.law.reads)
        if self.fitted.points is None:
            return [name for name, heard in zip(self.sample.names, self._heard) if heard]
        named = dict(zip(zip(*(data[symbol] for symbol in symbols)), self.sample.names))
        return [named.get(key, "") for key in zip(*(self.points[symbol] for symbol in symbols))]

    @property
    def _heard(self) -> np.ndarray:
        points = self.fitted.points or self.sample.data
        return np.isfinite(self.fitted.curve(points)) & np.isfinite(points[self.law.explains])

    def guess(self, place: Data, budget: float | None = None) -> Guess:
        """The law at one place."""
        loss = float(self.fitted.curve(place)[0])
        at = {symbol: float(values[0]) for symbol, values in place.items()}
        if self.draws is None:
            return Guess(at, loss, math.nan, math.nan, (math.nan, math.nan), {}, budget)
        low, high = prediction(self.law, self.draws, place, self.level)
        spread = percentiles(np.array([fit.curve(place)[0] for fit in self.draws.fits]), self.level)
        return Guess(at, loss, float(low[0]), float(high[0]), spread, self._ranges(budget), budget)

    def _ranges(self, budget: float | None) -> dict[str, tuple[float, float]]:
        if budget is None or self.draws is None:
            return {}
        places = [fit.place(budget) for fit in self.draws.fits if fit.place is not None]
        return {symbol: percentiles(np.array([p[symbol][0] for p in places]), self.level) for symbol in places[0]}

    def at_budget(self, budget: float) -> Guess:
        """The law where a budget is spent best. Raises UserError for laws that say nothing of budgets."""
        if self.fitted.place is None:
            raise UserError(f"The law {self.name} says nothing of a budget. Leave out --predict and --next.")
        if not (math.isfinite(budget) and budget > 0):
            raise UserError(f"The budget {budget} is no positive number.")
        return self.guess(self.fitted.place(budget), budget)


def judge(
    name: str, law: Law, sample: Sample, fixed: Mapping[str, float], noise: float | None, samples: int, level: float
) -> Report:
    """Fit a law and all its intervals. samples: resamples. Raises UserError for runs that the law refuses."""
    law.check_fixed(fixed)
    check_samples(samples)
    percentiles(np.zeros(1), level)  # which refuses a level that is no share
    if noise is not None and not (math.isfinite(noise) and noise > 0):
        raise UserError(f"--noise is {noise:g}; give a standard deviation above 0, such as 0.003.")
    fitted, data = law.fit(sample.data, fixed), sample.data
    if not isinstance(fitted, Fitted):
        raise UserError(f"fit of the law {name} returned {type(fitted).__name__}; return a Fitted.")
    if not len(residuals(law, fitted, data)) and not fitted.notes:  # which say why, where a law knows
        raise UserError(f"The law {name} says nothing of any of the {len(data[law.explains])} runs: its curve is NaN.")
    spread = noise_of(law, fitted, data, noise)
    notes, draws = [*fitted.notes, *sample.notes], None
    try:
        if all(math.isfinite(value) for value in fitted.numbers.values()):
            draws = draw(law, fitted, data, fixed, spread, samples)
            notes += draws.notes
        else:
            notes.append("a number is not determined, so there are no intervals")
    except UserError as error:
        notes.append(str(error))
    runs = [run.name for run in sample.runs]
    without = dict(zip(runs, without_each(law, fitted, data, fixed))) if len(runs) > 2 else {}
    lack = None if sample.mixed else lack_of_fit(law, fitted, data, noise)
    return Report(name, law, sample, fixed, fitted, spread, draws, without, lack, tuple(notes), level)


def verdicts(report: Report, out: Sample) -> list[tuple[str, Guess, float, bool]]:
    """(run, what the law says of it, what it was, whether that is inside) of runs that were held out."""
    found = []
    for i, name in enumerate(out.names):
        guess = report.guess({symbol: out.data[symbol][i : i + 1] for symbol in report.law.given})
        seen = float(out.data[report.law.explains][i])
        found.append((name, guess, seen, guess.low <= seen <= guess.high))
    return found


def as_json(report: Report, guesses: Sequence[Guess] = (), out: Sample | None = None) -> dict[str, Any]:
    """Everything that was found, in strict JSON types."""
    law, points, found = report.law, report.points, report.draws.intervals(report.level) if report.draws else {}
    curves = {symbol: values.tolist() for symbol, values in points.items() if symbol != RUN}
    held = [] if out is None else verdicts(report, out)
    return jsonable(
        {
            "law": report.name,
            "formula": law.formula,
            "columns": {symbol: {"name": name, "words": words(name)} for symbol, name in report.sample.reads.items()},
            "given": dict(report.fixed),
            "parameters": report.fitted.numbers,
            "level": report.level,
            "intervals": found,
            "intervals_from": report.draws.way if report.draws else None,
            "without": {run: fit.numbers if fit else None for run, fit in report.without.items()},
            "noise": {"standard_deviation": report.noise.size, "relative": law.relative, "from": report.noise.source},
            "lack_of_fit": None if report.lack is None else {"p": report.lack.chance, "words": report.lack.words},
            "runs": [run.name for run in report.sample.runs],
            "points": {"run": report.names, **curves, "law": report.fitted.curve(points).tolist()},
            "notes": list(report.notes),
            "predictions": [_of_guess(guess) for guess in guesses],
            "held_out": [{"run": n, "seen": seen, "inside": ok, **_of_guess(g)} for n, g, seen, ok in held],
        }
    )


def _of_guess(guess: Guess) -> dict[str, Any]:
    return {
        "budget": guess.budget,
        "place": dict(guess.place),
        "place_intervals": dict(guess.ranges),
        "predicted": guess.loss,
        "interval": (guess.low, guess.high),
        "interval_of_law": guess.spread,
    }


def band(report: Report, places: Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(law, low, high) of one run at many places, for a figure; NaN without intervals."""
    said = report.fitted.curve(places)
    if report.draws is None:
        return said, np.full_like(said, np.nan), np.full_like(said, np.nan)
    return said, *prediction(report.law, report.draws, places, report.level)
