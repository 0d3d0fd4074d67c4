"""Sweeps of a setting, such as the learning rate: the loss over it at each x, its best value, and that over x."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_gpt.lab.figure_curves import STEPS
from lit_gpt.lab.figure_fits import Fits, finish, fit_groups, say
from lit_gpt.lab.figures import (
    LISTED,
    Look,
    along,
    dress,
    legend,
    looks,
    panels,
    shades,
    shown,
    value_of,
)
from lit_gpt.lab.fit_report import Report
from lit_gpt.metrics.figures import short, spaced
from lit_gpt.scaling.intervals import percentiles
from lit_gpt.scaling.noise import student
from lit_gpt.scaling.sweeps import Optima, Optimum, fit_optima, groups

SHOWN = 4  # groups whose sweeps have a panel; the best values of all groups share one
NAMED = 6  # sweeps of a panel in its legend


def draw_sweeps(given: Any) -> None:
    """The figure and its files; see figure_fits.parser_of and add_fit."""
    fits = fit_groups(given, "best_rate")
    found = {group: _optima(report) for group, report in fits.reports.items()}
    numbers = fits.as_json()
    for group, optima in found.items():
        of_group = numbers if "groups" not in numbers else numbers["groups"][group]
        of_group["optima"] = [_told(optima, one, given.level) for one in optima.optima]
    if len(found) > SHOWN:
        say([f"the sweeps of {SHOWN} of {len(found)} groups are drawn, and the best values of all"])
    finish(given, _draw(fits, found, given.level), numbers)


def _optima(report: Report) -> Optima:
    x, setting, loss = (report.sample.data[symbol] for symbol in report.law.reads)
    return fit_optima(x, setting, loss)


def half_of(optima: Optima, one: Optimum, level: float) -> float:
    """Half of the interval of ln(best) by the delta method; infinite where the runs say nothing of noise."""
    return student(optima.freedom, level) * optima.noise * one.spread if optima.freedom else math.inf


def _told(optima: Optima, one: Optimum, level: float) -> dict[str, Any]:
    half = min(half_of(optima, one, level), 700.0)
    ends = (one.best * math.exp(-half), one.best * math.exp(half)) if half < 700 else None
    return {"x": one.x, "best": one.best, "interval": ends, "loss": one.loss, "runs": one.runs, "bracketed": one.inside}


def _draw(fits: Fits, found: Mapping[str, Optima], level: float) -> Any:
    drawn = list(found)[:SHOWN]
    several = any(len(optima.optima) > 1 for optima in found.values())
    figure, grid = panels(len(drawn) + several, height=2.1)
    symbol, setting, loss = next(iter(fits.reports.values())).law.reads
    every = sorted({round(one.x, 12) for optima in found.values() for one in optima.optima})
    styles = dict(zip(every, shades(len(every))))
    named = spaced(every, NAMED)
    for panel, group in zip(grid[:, 0], drawn):
        report, optima = fits.reports[group], found[group]
        if panel is not grid[0, 0]:
            panel.sharex(grid[0, 0])  # so that one sees whether the best rate moves from group to group
        for place in groups(report.sample.data["x"]):
            at = float(np.exp(np.log(report.sample.data["x"][place]).mean()))
            key = min(every, key=lambda x: abs(math.log(x / at)))
            label = value_of(key, fits.reads[symbol]) if key in named else None
            _sweep(panel, report, optima, place, styles[key], label)
        dress(panel, shown(fits.reads[setting]), shown(fits.reads[loss]), short(group, 40))
        along(panel, "x", fits.reads[setting], np.concatenate([r.sample.data[setting] for r in fits.reports.values()]))
    if several:
        _best(grid[-1, 0], fits, found, level)
    if any(optima.inside for optima in found.values()):  # an entry of its own, behind those of the sweeps
        style: dict[str, Any] = {"color": "white", "markeredgecolor": "black", "markersize": 8, "linestyle": ""}
        grid[len(drawn) - 1, 0].plot([], [], "*", label="lowest point of a sweep", **style)
    legend(figure, list(grid[:, 0]), NAMED + 1 + LISTED)
    return figure


def _sweep(panel: Any, report: Report, optima: Optima, place: np.ndarray, look: Look, label: str | None) -> None:
    """The runs of one x, their parabola, and its lowest point: full where the sweep brackets it."""
    data, (_, setting, loss) = report.sample.data, report.law.reads
    rates = data[setting][place]
    panel.plot(rates, data[loss][place], look.marker, color=look.color, markersize=3, label=label)
    at = float(np.exp(np.log(data["x"][place]).mean()))
    one = next((o for o in optima.optima if abs(math.log(o.x / at)) < 1e-9), None)
    if one is None:
        return
    swept = np.geomspace(rates.min(), rates.max(), STEPS)
    panel.plot(swept, one.curvature * np.log(swept / one.best) ** 2 + one.loss, color=look.color, linewidth=0.8)
    if one.inside:
        star: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.4, "markersize": 8}
        panel.plot(one.best, one.loss, "*", color=look.color, **star)


def _best(panel: Any, fits: Fits, found: Mapping[str, Optima], level: float) -> None:
    """The best setting over x with its interval, and the law with its own; hollow where it is not bracketed."""
    symbol, setting, _ = next(iter(fits.reports.values())).law.reads
    told = spaced(list(found), LISTED)
    for look, (group, optima) in zip(looks(len(found)), found.items()):
        for inside in (True, False):
            some = [one for one in optima.optima if one.inside == inside]
            x, best = np.array([one.x for one in some]), np.array([one.best for one in some])
            half = np.array([min(half_of(optima, one, level), 3.0) if inside else 0.0 for one in some])
            ends = np.stack([best - best * np.exp(-half), best * np.exp(half) - best]) if len(some) else None
            face = look.color if inside else "white"
            style: dict[str, Any] = {"color": look.color, "markerfacecolor": face, "markersize": 4, "capsize": 2}
            named = "not bracketed by its sweep" if not inside else (group or "best value") if group in told else None
            panel.errorbar(
                x, best, yerr=ends, fmt=look.marker, linewidth=0.8, label=named if len(some) else None, **style
            )
        _law(panel, fits.reports[group], setting, look)
    title = "" if len(told) == len(found) else f"{len(told)} of {len(found)} groups are named below"
    dress(panel, shown(fits.reads[symbol]), f"best {shown(fits.reads[setting])}", title)
    along(panel, "x", fits.reads[symbol], [one.x for optima in found.values() for one in optima.optima])
    along(panel, "y", fits.reads[setting], [one.best for optima in found.values() for one in optima.optima])


def _law(panel: Any, report: Report, setting: str, look: Look) -> None:
    place = report.fitted.place
    if place is None or not math.isfinite(report.fitted.numbers.get("a", math.nan)):
        return
    x = np.geomspace(report.sample.data["x"].min(), report.sample.data["x"].max(), STEPS)
    panel.plot(x, [place(at)[setting][0] for at in x], color=look.color, linewidth=1.0)
    if report.draws is not None:
        laws = [fit.place for fit in report.draws.fits if fit.place is not None]
        few = x[:: (STEPS - 1) // 9]
        ends = [percentiles(np.array([law(at)[setting][0] for law in laws]), report.level) for at in few]
        panel.fill_between(few, *np.array(ends).T, color=look.color, alpha=0.15, linewidth=0)
