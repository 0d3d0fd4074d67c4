"""The best learning rate of each batch, and its power law over the batch.

    python plots/plot_bsz_scaling.py out/batches
    python plots/plot_bsz_scaling.py runs.csv --x x=tokens --fix c=0.002

Parabolas in ln(rate) of the runs of each batch, their lowest points, and rate = a B^b + c through those that their
sweeps bracket; c is 0 unless it is given. `--x x=tokens` gives the law over tokens instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_gpt.config.command import run_command
from lit_gpt.lab.figure_fits import add_fit, parser_of
from lit_gpt.lab.sweep_figure import draw_sweeps

ABOUT = (
    "The loss over the learning rate for each batch, a parabola in ln(rate) whose lowest point is the best rate, and "
    "the law of the best rates over the batch. It needs three rates or more at each of two batches or more."
)


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    parser = parser_of("plot_bsz_scaling", ABOUT, "out/batches")
    add_fit(parser, ["x=batch"])
    draw_sweeps(parser.parse_args(arguments))


if __name__ == "__main__":
    run_command(main)
