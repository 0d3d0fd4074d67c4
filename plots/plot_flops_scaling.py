"""The loss over compute, with a power law with offset and what it leaves of each run.

    python plots/plot_flops_scaling.py out/ladder
    python plots/plot_flops_scaling.py runs.csv --x flops_6nd --fix c=1.7

L = a C^-b + c by least squares; the band holds single runs. `--x flops_6nd` counts 6 x parameters x tokens, as
ArchScale's figure of this name does.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_gpt.config.command import run_command
from lit_gpt.lab.figure_fits import add_fit, parser_of
from lit_gpt.lab.law_figure import draw_power

ABOUT = (
    "The loss over compute, and its power law L = a C^-b + c with the interval of a new run; below, what the law "
    "leaves of each run. It needs three sizes, better six."
)


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of("plot_flops_scaling", ABOUT, "out/ladder")
    add_fit(parser, ["flops"])
    draw_power(parser.parse_args(arguments))


if __name__ == "__main__":
    run_command(main)
