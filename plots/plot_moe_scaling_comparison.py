"""Mixtures of experts compared with dense models at equal active compute: a power law of each sparsity.

    python plots/plot_moe_scaling_comparison.py out/experts --group sparsity

Compute is that of the experts that a token uses, which is what a dense model of the same size needs. The first group,
by default the least sparse one, is what the others' compute leverage is over. A group of fewer than three sizes has
its runs drawn and no law.
"""

from __future__ import annotations

from collections.abc import Sequence

from lit_gpt.config.command import run_command
from lit_gpt.lab.comparison_figure import compare
from lit_gpt.lab.figure_fits import add_fit, parser_of


def main(arguments: Sequence[str]) -> None:
    """Fit, draw, and print what was written."""
    about = "Power laws of mixtures of experts, and their leverage over the least sparse models."
    parser = parser_of("plot_moe_scaling_comparison", about, "out/experts", group="sparsity")
    add_fit(parser, ["flops"])
    compare(parser.parse_args(arguments))


if __name__ == "__main__":
    run_command(main)
