"""A fitted law as a figure: runs, curve, band of prediction, runs that were held out, and residuals below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.lab.fit_report import Guess, Report, band
from lit_gpt.lab.fit_runs import Sample
from lit_gpt.metrics.figures import save, subplots
from lit_gpt.scaling.intervals import residuals
from lit_gpt.scaling.law import Data

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito: for all eyes
LINES = 7  # of a law of two columns: one for each of so many values of the other one
STEPS = 100  # of a curve


def draw_fits(
    reports: Mapping[str, Report], guesses: Mapping[str, Sequence[Guess]], out: Mapping[str, Sample | None], path: Path
) -> Path:
    """Write the figure: one color for each group of runs. Returns its path."""
    figure, panels = subplots(6.4, 6.0, 2, 1, sharex=True, height_ratios=(3, 1))
    top, bottom = panels[:, 0]
    for (group, report), color in zip(reports.items(), COLORS * len(reports)):
        many = len(reports) > 1
        _curves(top, report, guesses.get(group, ()), color, group, one_color=many)
        _points(top, bottom, report, color, group if many else "runs")
        _held(top, report, out.get(group), color)
        for guess in guesses.get(group, ()):
            _guess(top, report, guess, color)
    first = next(iter(reports.values()))
    x = first.law.given[0]
    top.set_xscale("log")
    top.set_ylabel(first.sample.words(first.law.explains))
    bottom.set_xlabel(first.sample.words(x))
    bottom.set_ylabel("difference from the law" + (" (share)" if first.law.relative else ""))
    bottom.axhline(0, color="black", linewidth=0.8)
    top.set_title(f"{first.name}: {first.law.formula.split(';')[0]}", fontsize=9)
    for panel in (top, bottom):
        panel.grid(alpha=0.25)
    top.legend(fontsize=8, frameon=False)
    return save(figure, path)


def _points(top: Any, bottom: Any, report: Report, color: str, label: str) -> None:
    x, y = report.points[report.law.given[0]], report.points[report.law.explains]
    top.plot(x, y, "o", color=color, markersize=4, label=label)
    left = residuals(report.law, report.fitted, report.sample.data)
    bottom.plot(x, left, "o", color=color, markersize=3.5)
    if report.noise.size > 0:
        bottom.axhspan(-report.noise.size, report.noise.size, color=color, alpha=0.12, linewidth=0)


def _curves(top: Any, report: Report, guesses: Sequence[Guess], color: str, group: str, one_color: bool) -> None:
    """The law and the band that holds `level` of all runs; with several columns, where budgets are spent best."""
    places = _places(report, guesses)
    said, low, high = band(report, places)
    x = places[report.law.given[0]]
    top.plot(x, said, color=color, linewidth=1.5, label=None if one_color else _name(report))
    if np.isfinite(low).all():
        of = f"{report.level:.0%} of runs" + (f", {group}" if group else "")
        top.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0, label=None if one_color else of)


def _name(report: Report) -> str:
    return "the law" if len(report.law.given) == 1 else "the law where compute is spent best"


def _places(report: Report, guesses: Sequence[Guess]) -> Data:
    """Where the curve is drawn: over the runs, and on to the predictions."""
    given = report.law.given
    x = np.concatenate(
        [report.points[given[0]], [guess.place[given[0]] for guess in guesses if given[0] in guess.place]]
    )
    if len(given) == 1 or report.fitted.place is None:
        middle = {symbol: np.full(STEPS, np.exp(np.log(report.points[symbol]).mean())) for symbol in given}
        return {**middle, given[0]: np.geomspace(x.min(), x.max(), STEPS)}
    budgets = _budgets(report, float(x.min()), float(x.max()))
    places = [report.fitted.place(float(budget)) for budget in budgets]
    return {symbol: np.concatenate([place[symbol] for place in places]) for symbol in places[0]}


def _budgets(report: Report, low: float, high: float) -> np.ndarray:
    """Budgets at whose best places the first column goes from low to high; it is a power of the budget there."""
    place, x = report.fitted.place, report.law.given[0]
    assert place is not None
    one, two = (float(place(budget)[x][0]) for budget in (1e18, 1e20))
    power = np.log(two / one) / np.log(100)
    return 1e18 * (np.geomspace(low, high, STEPS) / one) ** (1 / power)


def _held(top: Any, report: Report, out: Sample | None, color: str) -> None:
    if out is None:
        return
    x = report.law.given[0]
    at, y = out.data[x], out.data[report.law.explains]
    said, low, high = band(report, {symbol: out.data[symbol] for symbol in report.law.given})
    errors = np.maximum(np.stack([said - low, high - said]), 0.0)
    top.errorbar(at, said, yerr=errors if np.isfinite(errors).all() else None, fmt="none", ecolor=color, capsize=4)
    top.plot(at, y, "D", color=color, markerfacecolor="white", markersize=7, label="held out")


def _guess(top: Any, report: Report, guess: Guess, color: str) -> None:
    x = guess.place.get(report.law.given[0])
    if x is not None:
        error = None if guess.low != guess.low else [[guess.loss - guess.low], [guess.high - guess.loss]]
        top.errorbar([x], [guess.loss], yerr=error, fmt="*", color=color, markersize=10, capsize=4, label="predicted")
