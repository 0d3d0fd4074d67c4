"""A fitted law as a figure: runs, curve, band of prediction, runs that were held out, and residuals below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.lab.figures import Look, broken, legend, looks
from lit_gpt.lab.fit_lines import Line, by_budget, lines_of, over, words_of_x, x_of
from lit_gpt.lab.fit_report import Guess, Report, band
from lit_gpt.lab.fit_runs import Sample
from lit_gpt.metrics.figures import save, subplots
from lit_gpt.scaling.intervals import residuals
from lit_gpt.scaling.law import RUN, Data

WITHIN = 5  # names of a legend inside the panel
WIDE = 10.0  # largest over smallest, from which an axis is logarithmic


def draw_fits(
    reports: Mapping[str, Report],
    guesses: Mapping[str, Sequence[Guess]],
    out: Mapping[str, Sample | None],
    path: Path,
) -> Path:
    """Write the figure: one color for each group of runs, or for each budget of one group. Returns its path."""
    figure, panels = subplots(6.4, 6.0, 2, 1, sharex=True, height_ratios=(3, 1))
    top, bottom = panels[:, 0]
    places = {group: _places(guesses[group], out.get(group)) for group in reports}
    lines = {group: list(lines_of(report, places[group])) for group, report in reports.items()}
    found = iter(looks(max(len(reports), *map(len, lines.values()))))
    for group, report in reports.items():
        look, held = next(found), out.get(group)
        color, here = look.color, places[group]
        for i, line in enumerate(lines[group]):
            _curve(top, line, color if i == 0 or len(reports) > 1 else next(found).color, group)
        _points(top, bottom, report, look if by_budget(report) is None else Look("black", "o"), group or "runs")
        if held:
            _marks(top, report, held.data, held.data[report.law.explains], color, ("D", "held out"))
        for place, guess in zip(here[len(here) - len(guesses[group]) :], guesses[group]):
            if np.isfinite(guess.loss):  # best_rate predicts a rate, and no loss
                _marks(top, report, place, np.array([guess.loss]), color, ("*", "predicted"))
    _labels(top, bottom, next(iter(reports.values())))
    _legend(figure, top)
    return save(figure, path)


def _places(guesses: Sequence[Guess], held: Sample | None) -> list[Data]:
    """Of the runs that were held out, and of each prediction."""
    predicted = [{name: np.array([value]) for name, value in guess.place.items()} for guess in guesses]
    return [held.data, *predicted] if held else list(predicted)


def _curve(top: Any, line: Line, color: str, group: str) -> None:
    top.plot(line.x, line.said, color=color, linewidth=1.5, label=None if group else line.label)
    if np.isfinite(line.low).all():
        top.fill_between(line.x, line.low, line.high, color=color, alpha=0.15, linewidth=0)


def _points(top: Any, bottom: Any, report: Report, look: Look, label: str) -> None:
    color, marker = look
    points, whole = report.points, report.sample.data
    if report.law.curves and RUN in whole and report.fitted.points:
        for run in np.unique(whole[RUN]):
            here = whole[RUN] == run
            top.plot(
                x_of(report, whole)[here], whole[report.law.explains][here], color="grey", alpha=0.5, linewidth=0.7
            )
    top.plot(x_of(report, points), points[report.law.explains], marker, ls="", color=color, markersize=4, label=label)
    left = residuals(report.law, report.fitted, whole)
    bottom.plot(x_of(report, points), left, marker, ls="", color=color, markersize=3.5)
    if report.noise.size > 0:
        bottom.axhspan(-report.noise.size, report.noise.size, color=color, alpha=0.12, linewidth=0)


def _marks(top: Any, report: Report, places: Data, y: np.ndarray, color: str, shape: tuple[str, str]) -> None:
    """Runs that were held out, or predictions, with the interval of a run there."""
    said, low, high = band(report, places)
    x, (marker, label) = x_of(report, places), shape
    if np.isfinite(low).all():
        errors = np.maximum(np.stack([said - low, high - said]), 0.0)
        top.errorbar(x, said, yerr=errors, fmt="none", ecolor=color, capsize=4)
    face = "white" if marker == "D" else color
    top.plot(x, y, marker, color=color, markerfacecolor=face, markersize=7 if marker == "D" else 10, label=label)


def _labels(top: Any, bottom: Any, first: Report) -> None:
    bottom.set_xlabel(broken(words_of_x(first), 74))
    explained = first.sample.words(first.law.explains)
    top.set_ylabel(broken(explained, 40))
    _, bracket, unit = (explained if not first.law.relative else " (share)").partition(" (")
    bottom.set_ylabel(broken("run - law" + bracket + unit, 16))
    bottom.axhline(0, color="black", linewidth=0.8)
    top.set_title(f"{first.name}: {first.law.formula.split(';')[0]}", fontsize=9)
    low, high = top.get_xlim()
    if over(first) is not None or (low > 0 and high > WIDE * low):
        top.set_xscale("log")
    for panel in (top, bottom):
        panel.grid(alpha=0.25)


def _legend(figure: Any, top: Any) -> None:
    """Beside the points where there are few names, else below them, where many would cover some."""
    handles = dict(zip(*reversed(top.get_legend_handles_labels())))  # one entry for each label
    if len(handles) > WITHIN:
        legend(figure, [top], others="; what is printed has all")
    else:
        top.legend(handles.values(), handles.keys(), fontsize=8, frameon=False)
