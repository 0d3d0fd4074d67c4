"""Is training healthy? Loss, gradients, activations and routers of several runs over tokens, a panel for each metric.

    python plots/plot_stability.py out/RUN_A out/RUN_B
    python plots/plot_stability.py grad_norm.csv router_z_mean.csv --tokens_per_step 524288

Nothing is fitted. The JSON has the last value of every curve, its largest one and where that was, and for loss and
gradient how many values were spikes: more than 6 standard deviations above the mean of the 128 before. Behind the name
of a run that has not finished stands its state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.lab.figure_fits import RUNS, finish
from lit_gpt.lab.figures import along, dress, legend, looks, panels, shown
from lit_gpt.lab.health_curves import chosen, numbers_of, read_curves
from lit_gpt.lab.tables import Curve
from lit_gpt.metrics.curve import scale_y, smooth

USUAL = (
    "metric/train_loss",
    "metric/grad_norm",
    "metric/attn_output_rmsnorm_mean",
    "metric/mlp_output_rmsnorm_mean",
    "metric/attn_outlier_pct_mean",
    "metric/mlp_outlier_pct_mean",
    "metric/router_z_mean",
    "metric/maxvio_batch_avg",
)
FALLS = 0.05  # share of the curve at its beginning whose fall may leave the panel


def draw(found: Mapping[str, Mapping[str, Curve]]) -> Any:
    """Two panels beside each other, one where there is one metric."""
    names = list(dict.fromkeys(run for runs in found.values() for run in runs))
    styles = dict(zip(names, looks(len(names))))
    columns = min(2, len(found))
    figure, grid = panels(-(-len(found) // columns), columns, height=1.9)
    for panel, (metric, runs) in zip(grid.flat, found.items()):
        for run, curve in runs.items():
            line, color = smooth(curve.y), styles[run].color
            label = f"{run} ({curve.state})" if curve.state else run
            panel.plot(curve.x, curve.y, color=color, alpha=0.2, linewidth=0.5)
            every = max(1, len(line) // 6)  # a few markers, which tell lines apart in grey
            panel.plot(curve.x, line, styles[run].marker, ls="-", color=color, lw=1, ms=3, markevery=every, label=label)
        over = next(iter(runs.values())).over
        dress(panel, shown(over), shown(metric), tall=26)
        _within(panel, list(runs.values()))
        along(panel, "x", over, [x for curve in runs.values() for x in curve.x[[0, -1]]], even=True)
    for panel in list(grid.flat)[len(found) :]:
        panel.remove()
    legend(figure, list(grid.flat)[: len(found)])
    return figure


def _within(panel: Any, curves: Sequence[Curve]) -> None:
    """Scale y to what comes after the beginning, whose fall would press the rest into a line."""
    after = [value for curve in curves for value in smooth(curve.y)[int(FALLS * len(curve.y)) :]]
    scale_y(panel, min(after), max(after), 0.1)


def main(arguments: Sequence[str]) -> None:
    """Draw, and print what was written."""
    parser = PlainParser(
        description="Metrics of health of several runs, over tokens: loss, gradient norm, outliers, routers."
    )
    parser.examples = [("python plots/plot_stability.py out/run_a out/run_b", "one panel for each that was logged")]
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help=RUNS)
    parser.add_argument("--output", type=Path, default=Path("plot_stability.png"), help="picture to write, a PNG file")
    parser.add_argument("--json", type=Path, help="file for the numbers; default: the picture's name in .json")
    parser.add_argument("--metric", nargs="+", default=[], help="keys to draw; default: those of health that there are")
    parser.add_argument(
        "--tokens_per_step", type=float, help="of charts over steps; default: they are drawn over steps"
    )
    given = parser.parse_args(arguments)
    found = chosen(read_curves(given.runs, given.tokens_per_step), given.metric, USUAL)
    finish(given, draw(found), numbers_of(found))


if __name__ == "__main__":
    run_command(main)
