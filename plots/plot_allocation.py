"""How compute is best shared between parameters and tokens: the optimum of each budget, and its power laws.

    python plots/plot_allocation.py out/isoflop
    python plots/plot_allocation.py runs.csv --law chinchilla

The law isoflop has a point with its interval for each budget of the study; chinchilla and envelope, which need no
budgets that runs share, have lines alone. Bands are intervals of the lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_gpt.config.command import run_command
from lit_gpt.lab.figure_curves import error_bar
from lit_gpt.lab.figure_fits import Fits, add_fit, finish, fit_groups, parser_of
from lit_gpt.lab.figures import Look, along, dress, legend, looks, panels, shown
from lit_gpt.lab.fit_report import Report
from lit_gpt.lab.isoflop_points import told, vertices_of
from lit_gpt.lab.runs import column
from lit_gpt.scaling.intervals import percentiles

LAWS = ("isoflop", "chinchilla", "envelope")
STEPS = 12  # of a line, straight between logarithms


def budgets(report: Report) -> np.ndarray:
    """From the smallest compute of the runs to the largest, as the law counts it."""
    name = report.law.budget_column(report.sample.reads)
    if name not in report.sample.reads.values() and all(r.value(name) is None for r in report.sample.runs):
        name = "flops_6nd"
    compute = column(report.sample.runs, name)
    return np.geomspace(compute.min(), compute.max(), STEPS)


def line(panel: Any, report: Report, symbol: str, look: Look, label: str) -> None:
    """The best N or D of each budget, with the interval of the line."""
    compute, place = budgets(report), report.fitted.place
    assert place is not None, report.name
    said = [place(c)[symbol][0] for c in compute]
    panel.plot(compute, said, color=look.color, linewidth=1.0, marker="", label=label)
    if report.draws is not None:
        ends = [percentiles(np.array([f.place(c)[symbol][0] for f in report.draws.fits if f.place]), report.level)
                for c in compute]  # fmt: skip
        panel.fill_between(compute, *np.array(ends).T, color=look.color, alpha=0.15, linewidth=0)


def draw(fits: Fits) -> Any:
    """A panel for parameters and one for tokens."""
    figure, grid = panels(2, height=2.1, sharex=True)
    for symbol, panel in zip("ND", grid[:, 0]):
        exponents = []
        for look, (group, report) in zip(looks(len(fits.reports)), fits.reports.items()):
            line(panel, report, symbol, look, group or "optimum")
            exponents.append(_exponent(report, f"{symbol}_exponent"))
            for v in vertices_of(report) if report.name == "isoflop" else ():
                error_bar(panel, v.flops, v.place[symbol], v.intervals.get(symbol), look, upright=True)
        values = [y for one in panel.lines for y in one.get_ydata()]
        dress(panel, "", f"best {shown(fits.reads[symbol])}", exponents[0] if len(exponents) == 1 else "")
        along(panel, "y", fits.reads[symbol], values)
    every = np.concatenate([budgets(report) for report in fits.reports.values()])
    name = next(iter(fits.reports.values())).law.budget_column(fits.reads)
    grid[1, 0].set_xlabel("", fontsize=8)
    dress(grid[1, 0], shown(name), grid[1, 0].get_ylabel().replace("\n", " "), grid[1, 0].get_title())
    along(grid[1, 0], "x", "flops", every)
    legend(figure, list(grid[:, 0]))
    return figure


def _exponent(report: Report, name: str) -> str:
    value = report.fitted.numbers.get(name, math.nan)
    low, high = report.draws.intervals(report.level)[name] if report.draws else (math.nan, math.nan)
    return f"~ compute^{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if math.isfinite(low) else "")


ABOUT = (
    "The best parameters and the best tokens over compute, and their power laws with intervals, by one of Chinchilla's "
    "three approaches: envelope (training curves), isoflop (parabolas), chinchilla (one law of both)."
)


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of("plot_allocation", ABOUT, "out/isoflop --law isoflop")
    parser.add_argument("--law", default=LAWS[0], choices=LAWS, help="the law whose optima are drawn")
    add_fit(parser)
    given = parser.parse_args(arguments)
    fits = fit_groups(given, given.law)
    points = {group: told(report) for group, report in fits.reports.items() if report.name == "isoflop"}
    finish(given, draw(fits), fits.as_json() | ({"optima": points} if points else {}))


if __name__ == "__main__":
    run_command(main)
