"""Ladders of runs compared: a power law with offset of each, and the compute leverage of the others over the first.

    python plots/plot_scaling_comparison.py out/muon_ladder out/muonh_ladder
    python plots/plot_scaling_comparison.py runs.csv --group optimizer --output optimizers.png

Compute leverage is the compute that the first ladder needs for a loss, over that of another one. The JSON has the
numbers of every law with their intervals and without each run in turn, and the leverage at the largest compute that
both ladders have; a leverage whose 95% interval holds 1 is called a tie.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_gpt.config.command import run_command
from lit_gpt.lab.comparison_figure import compare
from lit_gpt.lab.figure_fits import add_fit, parser_of

ABOUT = (
    "Power laws of several ladders, and compute leverage: the compute that the first ladder needs for a loss over that "
    "of another one, by a law of its own for each, so that it may change with compute."
)


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of("plot_scaling_comparison", ABOUT, "out/a out/b")
    add_fit(parser, ["flops"])
    compare(parser.parse_args(arguments))


if __name__ == "__main__":
    run_command(main)
