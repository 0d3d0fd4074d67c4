"""Ladders of runs over compute with a law for each, and the compute leverage of the others over the first one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lit_gpt.lab.figure_curves import STEPS, draw_law, draw_runs
from lit_gpt.lab.figure_fits import Fits, finish, fit_groups
from lit_gpt.lab.figures import Look, along, dress, legend, looks, panels, shown
from lit_gpt.lab.fit_report import Report
from lit_gpt.lab.runs import Run, column
from lit_gpt.metrics.figures import short
from lit_gpt.scaling.intervals import draw
from lit_gpt.scaling.leverage import Leverage, Resampled, compute_leverage

SIZES = 3  # different values of x, which a law of three numbers needs


def compare(given: Any) -> None:
    """The figure and its files, from what figure_fits.parser_of and add_fit read."""
    fits = fit_groups(given, "power", lambda runs: too_few(runs, given.x[0]))
    found = leverages(fits.reports)
    figure = _draw(fits, found)
    finish(given, figure, fits.as_json() | ({"leverage": {g: _told(lev) for g, lev in found.items()}} if found else {}))


def too_few(runs: Sequence[Run], x: str) -> str | None:
    """Why these runs have no law of three numbers, or None."""
    sizes = len(np.unique(column(runs, x)))
    return None if sizes >= SIZES else f"{sizes} different {x}, and this law needs {SIZES}. Add runs."


def leverages(reports: Mapping[str, Report]) -> dict[str, Leverage]:
    """Of every group but the first, over the compute that both have; the last place is the largest."""
    base, *_ = reports.values()
    resampled = [_resampled(report, seed) for seed, report in enumerate(reports.values())]
    found = {}
    for (group, other), drawn in list(zip(reports.items(), resampled))[1:]:
        seen = [report.sample.data["x"] for report in (base, other)]
        low, high = max(map(np.min, seen)), min(map(np.max, seen))
        compute = np.geomspace(low, high, STEPS) if low < high else seen[1].max(keepdims=True)
        draws = (resampled[0], drawn) if resampled[0] and drawn else None
        found[group] = compute_leverage(base.fitted, other.fitted, compute, draws, other.level)
    return found


def _resampled(report: Report, seed: int) -> Resampled | None:
    """A law's draws with noise of one size, each from a seed of its own: equal draws of two ladders would cancel."""
    if report.draws is None:
        return None
    samples, noise = len(report.draws.fits) + report.draws.skipped, replace(report.noise, freedom=math.inf)
    found = draw(report.law, report.fitted, report.sample.data, report.fixed, noise, samples, seed)
    return Resampled(found.fits, report.noise.freedom)


def _told(found: Leverage) -> dict[str, Any]:
    """The leverage at the largest compute."""
    return {
        "compute": found.compute[-1],
        "leverage": found.value[-1],
        "interval": (found.low[-1], found.high[-1]),
        "tie": bool(found.tie[-1]),
    }


def _draw(fits: Fits, found: Mapping[str, Leverage]) -> Any:
    x, y = fits.reads["x"], fits.reads["y"]
    figure, grid = panels(2 if found else 1, sharex=True)
    top, bottom = grid[0, 0], grid[-1, 0]
    styles = dict(zip(fits.groups, looks(len(fits.groups))))
    for group, runs in fits.groups.items():
        draw_runs(top, runs, x, y, styles[group], group or "runs")
        if report := fits.reports.get(group):
            draw_law(top, report, styles[group])
    every = [value for runs in fits.groups.values() for value in column(runs, x)]
    dress(top, "" if found else shown(x), shown(y))
    if found:
        for group, leverage in found.items():
            _leverage(bottom, leverage, styles[group])
        bottom.axhline(1, color="black", linewidth=0.8)
        dress(bottom, shown(x), f"compute leverage over {short(next(iter(fits.reports)), 20)}")
    along(bottom, "x", x, every)
    legend(figure, [top])
    return figure


def _leverage(axes: Any, found: Leverage, look: Look) -> None:
    there = np.isfinite(found.value)
    axes.plot(found.compute[there], found.value[there], color=look.color, linewidth=1.2)
    axes.plot(found.compute[there][-1:], found.value[there][-1:], look.marker, color=look.color, markersize=4)
    known = np.isfinite(found.low) & np.isfinite(found.high)
    axes.fill_between(found.compute[known], found.low[known], found.high[known], color=look.color, alpha=0.15, lw=0)
