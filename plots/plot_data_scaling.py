"""The loss over training tokens at one size or several, with a power law with offset of each.

    python plots/plot_data_scaling.py out/data --group depth

L = a D^-b + c by least squares; the band holds single runs. Runs that saw some of their data more than once follow
another law and are left out, unless --repeated takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_gpt.config.command import run_command
from lit_gpt.lab.figure_fits import add_fit, parser_of
from lit_gpt.lab.law_figure import draw_power

ABOUT = (
    "The loss over training tokens, and its power law L = a D^-b + c with the interval of a new run; below, what the "
    "law leaves of each run. It needs three budgets of each size, better six."
)


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of("plot_data_scaling", ABOUT, "out/data --group depth")
    add_fit(parser, ["tokens"])
    draw_power(parser.parse_args(arguments))


if __name__ == "__main__":
    run_command(main)
