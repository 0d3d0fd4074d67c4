"""Runs, their law and its interval in a panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_gpt.lab.figures import Look
from lit_gpt.lab.fit_report import Report, band
from lit_gpt.lab.runs import Run, column

STEPS = 100  # of a curve


def draw_runs(axes: Any, runs: Sequence[Run], x: str, y: str, look: Look, label: str | None = None) -> None:
    """One mark for each run."""
    axes.plot(column(runs, x), column(runs, y), look.marker, color=look.color, markersize=4, label=label)


def draw_law(axes: Any, report: Report, look: Look) -> None:
    """The curve of a law of one column, over its runs, and the band that holds single runs."""
    seen = report.sample.data["x"]
    along = np.geomspace(seen.min(), seen.max(), STEPS)
    said, below, above = band(report, {"x": along})
    axes.plot(along, said, color=look.color, linewidth=1.0)
    if np.isfinite(below).all():
        axes.fill_between(along, below, above, color=look.color, alpha=0.15, linewidth=0)


def error_bar(
    axes: Any, x: float, y: float, ends: tuple[float, float] | None, look: Look, upright: bool = False
) -> None:
    """A star with its interval: along x, or along y where it is upright."""
    if ends is not None:
        middle = y if upright else x
        bar = np.array([[max(middle - ends[0], 0.0)], [max(ends[1] - middle, 0.0)]])
        axes.errorbar([x], [y], **{"yerr" if upright else "xerr": bar}, fmt="none", ecolor="black", capsize=2, lw=0.8)
    axes.plot(x, y, "*", color=look.color, markeredgecolor="black", markeredgewidth=0.4, markersize=8, zorder=3)
