"""What a law leaves of each run, over every column that it reads: is anything left that is not noise?

    python plots/plot_residuals.py out/ladder --law power
    python plots/plot_residuals.py out/grid --law chinchilla --noise 0.003

Differences are in units of the noise: of the standard deviation of equal runs where it is given, else of the
residuals themselves. Two of three should lie within the grey band, and their order should show no curve. The JSON has
the test of lack of fit, which needs repeated runs (seeds) or --noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_gpt.config.command import run_command
from lit_gpt.errors import UserError
from lit_gpt.lab.figure_fits import Fits, add_fit, finish, fit_groups, parser_of
from lit_gpt.lab.figures import along, dress, legend, looks, panels, shown
from lit_gpt.scaling.intervals import residuals
from lit_gpt.scaling.laws import LAWS, law_named


def draw(fits: Fits) -> Any:
    """A panel for each column that the law reads, and one for what it says."""
    law = next(iter(fits.reports.values())).law
    figure, grid = panels(len(law.given) + 1, height=1.7)
    for symbol, panel in zip([*law.given, None], grid[:, 0]):
        every = list[float]()
        for look, (group, report) in zip(looks(len(fits.reports)), fits.reports.items()):
            x = report.points[symbol] if symbol else report.fitted.curve(report.points)
            left = residuals(law, report.fitted, report.sample.data)
            size = report.noise.size if report.noise.size > 0 else float(np.std(left)) or 1.0
            panel.plot(x, left / size, look.marker, color=look.color, markersize=3, label=group or "runs")
            every += x.tolist()
        panel.axhspan(-1, 1, color="grey", alpha=0.15, linewidth=0)
        panel.axhline(0, color="black", linewidth=0.8)
        name = fits.reads[symbol or law.explains]
        dress(panel, shown(name) if symbol else f"what the law says: {shown(name)}", "(run - law) / noise")
        along(panel, "x", name, every)
    legend(figure, list(grid[:, 0]))
    return figure


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of(
        "plot_residuals",
        "What a law leaves of each run, in units of the noise, over every column that it reads: a bend says that the "
        "law is another one, and a point far out that a run is to be checked.",
        "out/ladder --law power",
    )
    parser.add_argument("--law", default="power", choices=LAWS.names(), help="the law")
    add_fit(parser)
    given = parser.parse_args(arguments)
    if law_named(given.law).curves:
        raise UserError(f"--law {given.law} reads whole curves, not runs. Choose a law of runs.")
    fits = fit_groups(given, given.law)
    finish(given, draw(fits), fits.as_json())


if __name__ == "__main__":
    run_command(main)
