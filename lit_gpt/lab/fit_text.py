"""A fitted law in words and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lit_gpt.lab.fit_report import Guess, Report
from lit_gpt.lab.fit_steps import words
from lit_gpt.scaling.intervals import residuals

SHOWN = 40  # runs, above which only those farthest from the law are listed
FARTHEST = 10
WIDE = 0.1  # share of the loss, above which the interval of a prediction is said to be wide
FAR = 10.0  # times the largest x, beyond which a prediction is said to go far


def as_text(report: Report) -> list[tuple[str, Sequence[Sequence[str]]]]:
    """Titles and tables of a fit, in the order in which they are read; a table's first row is its header."""
    tables = [(f"parameters ({report.level:.0%} intervals)", _parameters(report))]
    tables += [(title, rows) for title, rows in report.fitted.tables.items()]
    if not report.law.curves:
        tables.append((_residual_title(report), _residuals(report)))
    return tables


def head(report: Report) -> list[str]:
    """The lines above the tables: law, columns, runs, and where intervals come from."""
    law, sample = report.law, report.sample
    lines = [f"law        {report.name}: {law.formula}"]
    for i, (symbol, name) in enumerate(sample.reads.items()):
        lines.append(f"{'' if i else 'reads':<11}{symbol} = {name}: {sample.words(symbol)}")
    if report.fixed:
        lines.append(f"given      {', '.join(f'{name} = {value:g}' for name, value in report.fixed.items())}")
    lines.append(f"runs       {len(sample.runs)}")
    lines.append(f"intervals  {report.draws.way if report.draws else 'none'}")
    lines.append(f"noise      {_noise(report)}")
    if report.lack:
        lines.append(f"fit        {report.lack.words}")
    return lines


def _noise(report: Report) -> str:
    if not math.isfinite(report.noise.size):
        return "unknown"
    size = f"{report.noise.size:.2%} of the value" if report.law.relative else f"{report.noise.size:.3g}"
    return f"{size} (standard deviation, from {report.noise.source})"


def _parameters(report: Report) -> list[tuple[str, ...]]:
    found = report.draws.intervals(report.level) if report.draws else {}
    rows: list[tuple[str, ...]] = [("", "value", "low", "high", "leaving out each run", "most by", "")]
    for name, value in report.fitted.numbers.items():
        low, high = found.get(name, (math.nan, math.nan))
        known = name in report.fixed or (bool(report.fixed) and low == high != 0)  # such as an exponent of given ones
        ends = ("given", "") if known else ("", "") if low != low else (_short(low), _short(high))
        rows.append((name, _short(value), *ends, *_moved(report, name, value), report.law.parameters.get(name, "")))
    return rows


def _moved(report: Report, name: str, value: float) -> tuple[str, str]:
    """How far a number moves without single runs, and the run that moves it most."""
    values = {run: fit.numbers[name] for run, fit in report.without.items() if fit is not None}
    if not values or name in report.fixed or not math.isfinite(value):
        return "", ""
    if min(values.values()) == max(values.values()):
        return "", ""
    most = max(values, key=lambda run: abs(values[run] - value))
    return f"{_short(min(values.values()))} to {_short(max(values.values()))}", most


def _short(value: float) -> str:
    return "not determined" if math.isnan(value) else f"{value:.5g}"


def _residual_title(report: Report) -> str:
    count = len(report.points[report.law.explains])
    return "residuals" if count <= SHOWN else f"the {FARTHEST} of {count} residuals that are largest"


def _residuals(report: Report) -> list[tuple[str, ...]]:
    law, points = report.law, report.points
    said, seen, names = report.fitted.curve(points), points[law.explains], report.names
    order = np.flatnonzero(np.isfinite(said))
    left = dict(zip(order.tolist(), residuals(law, report.fitted, report.sample.data).tolist()))
    if len(order) > SHOWN:
        order = np.array(sorted(left, key=lambda i: -abs(left[i]))[:FARTHEST])
    rows = [("run", *law.given, law.explains, "law", "difference", "/ noise")]
    for i in order:
        places = [f"{points[symbol][i]:.4g}" for symbol in law.given]
        of_noise = f"{left[i] / report.noise.size:+.1f}" if report.noise.size > 0 else ""
        rows.append((names[i], *places, f"{seen[i]:.4f}", f"{said[i]:.4f}", f"{seen[i] - said[i]:+.4f}", of_noise))
    return rows


def guess_lines(report: Report, guess: Guess) -> list[str]:
    """A prediction in words."""
    reads, places = report.sample.reads, []
    for symbol, value in guess.place.items():
        low, high = guess.ranges.get(symbol, (math.nan, math.nan))
        within = f" ({low:.3g} to {high:.3g})" if high > low * (1 + 1e-9) else ""
        places.append(f"{symbol} = {value:.4g}{within}")
    column = report.law.budget_column(reads)
    of = "" if guess.budget is None else f"{column} = {guess.budget:.4g}, {words(column)}: "
    asked = {symbol for symbol, value in guess.place.items() if value == guess.budget} | {*report.law.labels}
    answers = [guess.loss, *(value for symbol, value in guess.place.items() if symbol not in asked)]
    if all(map(math.isnan, answers)):
        return [f"{of}the law has numbers that are not determined, so it says nothing there"]
    lines = [f"{of}{', '.join(places)}"]
    if {"N", "D"} <= guess.place.keys():
        lines[0] += f", D / N = {guess.place['D'] / guess.place['N']:.3g}"
    if math.isnan(guess.loss):
        return lines
    said = f"{report.law.explains} = {guess.loss:.4f}"
    if math.isfinite(guess.low):
        said += f"; {report.level:.0%} of runs between {guess.low:.4f} and {guess.high:.4f}"
        said += f" (the law itself {guess.spread[0]:.4f} to {guess.spread[1]:.4f})"
    return [*lines, said, *_doubts(report, guess)]


def _doubts(report: Report, guess: Guess) -> list[str]:
    found = []
    for symbol, value in guess.place.items():
        seen = report.sample.data.get(symbol, np.array([math.inf]))
        if value > FAR * seen.max():
            found.append(f"note: {symbol} is {value / seen.max():.3g} times the largest of these runs")
    if guess.high - guess.low > WIDE * abs(guess.loss):
        found.append("note: the interval is wide: these runs say little of this place")
    return found
