"""An isoFLOP study: the loss over the size for each budget of compute, and the best size of each.

    python plots/plot_isoflop.py out/isoflop
    python plots/plot_isoflop.py runs.csv --x C=flops_6nd

A parabola in ln N for each budget, its lowest point with its interval (Chinchilla's second approach), and the line of
lowest points, N* = N_factor C^N_exponent. plot_allocation.py draws that line over compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_gpt.config.command import run_command
from lit_gpt.lab.figure_curves import STEPS, error_bar
from lit_gpt.lab.figure_fits import add_fit, finish, fit_groups, parser_of
from lit_gpt.lab.figures import along, dress, legend, panels, shades, shown, value_of
from lit_gpt.lab.fit_report import Report
from lit_gpt.lab.isoflop_points import told, vertices_of
from lit_gpt.scaling._allocation import least_loss, optimum
from lit_gpt.scaling.laws.isoflop import budgets_of

ABOUT = (
    "The best size for each budget of compute, the lowest point of a parabola in ln N (Chinchilla's second approach), "
    "and its growth with compute. It needs two budgets, better four, of three sizes or more around the best one."
)


def draw(panel: Any, report: Report) -> None:
    """All budgets of one study."""
    data, reads = report.sample.data, report.sample.reads
    budgets = budgets_of(data["C"])
    bottoms = {vertex.flops: vertex for vertex in vertices_of(report)}
    for budget, look in zip(budgets, shades(len(budgets))):
        n, label = data["N"][budget.rows], value_of(budget.flops, "flops")
        panel.plot(n, data["L"][budget.rows], look.marker, color=look.color, markersize=3.5, label=label)
        vertex = next((v for flops, v in bottoms.items() if abs(flops / budget.flops - 1) < 1e-6), None)
        if vertex is None:
            continue
        sizes = np.geomspace(n.min(), n.max(), STEPS)
        said = report.fitted.curve({"C": np.full(STEPS, budget.flops), "N": sizes})
        panel.plot(sizes, said, color=look.color, linewidth=0.9)
        error_bar(panel, vertex.place["N"], vertex.place["L"], vertex.intervals.get("N"), look)
    flops = np.geomspace(budgets[0].flops, budgets[-1].flops, STEPS)
    best = [optimum(report.fitted.numbers, c)["N"][0] for c in flops]
    law = least_loss(report.fitted.numbers, flops)
    panel.plot(best, law, color="black", linewidth=0.8, linestyle="--", label="law of the best sizes")
    dress(panel, shown(reads["N"]), shown(reads["L"]), _title(report))
    along(panel, "x", reads["N"], data["N"])


def _title(report: Report) -> str:
    low, high = report.draws.intervals(report.level)["N_exponent"] if report.draws else (np.nan, np.nan)
    within = f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else ""
    return f"best size ~ compute^{report.fitted.numbers['N_exponent']:.3f}{within}"


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of("plot_isoflop", ABOUT, "out/isoflop")
    add_fit(parser, ["C=flops"])
    given = parser.parse_args(arguments)
    fits = fit_groups(given, "isoflop")
    figure, grid = panels(len(fits.reports), height=2.7)
    for panel, (group, report) in zip(grid[:, 0], fits.reports.items()):
        draw(panel, report)
        if group:
            panel.set_title(f"{group}: {panel.get_title()}", fontsize=7)
    legend(figure, list(grid[:, 0]))
    finish(given, figure, fits.as_json() | {"optima": {g: told(r) for g, r in fits.reports.items()}})


if __name__ == "__main__":
    run_command(main)
