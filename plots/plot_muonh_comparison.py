"""The loss over the learning rate at several depths, and the best rate of each: does it stay where it is?

    python plots/plot_muonh_comparison.py out/muon_sweep out/muonh_sweep
    python plots/plot_muonh_comparison.py runs.csv --group optimizer --x depth rate=eta0

A panel for each group, with a parabola in ln(rate) for each depth and a star at its lowest point, and a panel of the
best rates over depth with their intervals and their power law. `--x` names the column whose values are curves, and
`rate=COLUMN` another setting than the learning rate of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_gpt.config.command import run_command
from lit_gpt.lab.figure_fits import add_fit, parser_of
from lit_gpt.lab.sweep_figure import draw_sweeps

ABOUT = (
    "The loss over the learning rate at each depth, a parabola in ln(rate) whose lowest point is the best rate, and "
    "the best rates over depth: an exponent near 0 says that the rate transfers. It needs three rates or more at each "
    "depth."
)


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of("plot_muonh_comparison", ABOUT, "out/muon out/muonh")
    add_fit(parser, ["x=depth"])
    draw_sweeps(parser.parse_args(arguments))


if __name__ == "__main__":
    run_command(main)
