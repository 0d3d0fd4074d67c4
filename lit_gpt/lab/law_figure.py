"""A law of one column: runs, curve and band for each group, and below what is left of each run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lit_gpt.lab.figure_curves import draw_law, draw_runs
from lit_gpt.lab.figure_fits import Fits, finish, fit_groups
from lit_gpt.lab.figures import along, dress, legend, looks, panels, shown
from lit_gpt.lab.fit_report import Report
from lit_gpt.lab.runs import column
from lit_gpt.scaling.intervals import residuals


def draw_power(given: Any) -> None:
    """The figure of power laws and its files; see figure_fits.parser_of and add_fit."""
    fits = fit_groups(given, "power")
    finish(given, _draw(fits), fits.as_json())


def _draw(fits: Fits) -> Any:
    x, y = fits.reads["x"], fits.reads["y"]
    figure, grid = panels(2, height=1.9, sharex=True, height_ratios=(3, 1.4))
    top, bottom = grid[:, 0]
    for look, (group, runs) in zip(looks(len(fits.groups)), fits.groups.items()):
        draw_runs(top, runs, x, y, look, group or "runs")
        if report := fits.reports.get(group):
            draw_law(top, report, look)
            left = 1e3 * residuals(report.law, report.fitted, report.sample.data)
            bottom.plot(report.points["x"], left, look.marker, color=look.color, markersize=3)
    bottom.axhline(0, color="black", linewidth=0.8)
    dress(top, "", shown(y), _formula(fits.reports))
    dress(bottom, shown(x), "run - law (thousandths)", tall=14)
    along(bottom, "x", x, np.concatenate([column(runs, x) for runs in fits.groups.values()]))
    legend(figure, [top])
    return figure


def _formula(reports: Mapping[str, Report]) -> str:
    """A single law, and its numbers on the lines below."""
    if len(reports) > 1:
        return ""
    (report,) = reports.values()
    found = report.draws.intervals(report.level) if report.draws else {}
    numbers = ", ".join(
        f"{name} = {value:.3g}" + (f" ({found[name][0]:.3g} to {found[name][1]:.3g})" if name in found else "")
        for name, value in report.fitted.numbers.items()
        if name != "a"
    )
    return f"{report.law.formula}\n{numbers}"
