"""Optimizers compared: final validation losses, and validation losses on the way.

    python plots/plot_optimizers.py out/optimizers/60m --output optimizers.png

The folder is that of launch_scripts/optimizer_benchmark.py: one folder per run, named after its optimizer, and with
_seedN behind that for all but the first seed. Seeds of an optimizer are one curve, their mean. Runs that have not
finished are left out, which is said on stderr.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.figures import write
from lit_gpt.lab.run_files import FINISHED, RunFiles
from lit_gpt.lab.runs import run_folders
from lit_gpt.metrics.curve import series
from lit_gpt.metrics.figures import COLORS, count_tokens, subplots
from lit_gpt.metrics.labels import TOKENS, axis_label
from lit_gpt.metrics.summary import read_metrics

LOSS = "metric/val_loss@1x"
NAMED = len(COLORS)  # the best ones have colours in the curves
Curve = list[tuple[int, float]]  # tokens, validation loss


def curves(folder: Path) -> dict[str, Curve]:
    """Optimizer -> validation losses over tokens, of finished runs; the others are named on stderr.

    Raises UserError when there is none, and for a name with two finished runs, which would be a mean of one seed.
    """
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    of_name: dict[str, Path] = {}
    for run in run_folders(folder):
        name, files = run.parent.name, RunFiles(run)
        if files.state != FINISHED or files.summary.get(LOSS) is None:
            why = "no validation loss" if files.state == FINISHED else f"not finished: {files.state}"
            print(f"left out: {run} ({why})", file=sys.stderr)
            continue
        if (other := of_name.setdefault(name, run)) != run:
            raise UserError(f"{other} and {run} are both finished runs of {name}. Move one of them elsewhere.")
        for tokens, loss in zip(*series(read_metrics(run), LOSS, run)):
            found[re.sub(r"_seed\d+$", "", name)][int(tokens)].append(float(loss))
    if not found:
        raise UserError(
            f"{folder} has no finished runs with validation losses. Give <output>/<scale> of the benchmark."
        )
    return {
        name: [(tokens, fmean(losses)) for tokens, losses in sorted(curve.items())] for name, curve in found.items()
    }


def draw(found: dict[str, Curve], output: Path) -> list[Path]:
    """Final losses from the lowest up, and the curves; those far above the median at the edge. Returns the paths."""
    names = sorted(found, key=lambda name: found[name][-1][1])
    final = [found[name][-1][1] for name in names]
    low, high = final[0], final[0] + 2.5 * max(final[len(final) // 2] - final[0], 0.05)
    figure, ((dots, lines),) = subplots(12, 1.5 + 0.2 * len(names), 1, 2, width_ratios=[3, 4])
    dots.plot([min(value, high) for value in final], names, "o", markersize=4)
    dots.grid(axis="y", linewidth=0.4)
    for i, value in enumerate(final):
        dots.text(min(value, high), i, f"  {value:.3f}", va="center", fontsize=7)
    margin = 0.15 * (high - low)
    dots.set(xlim=(low - margin, high + 2 * margin), xlabel=f"final {axis_label(LOSS)}")
    dots.invert_yaxis()
    dots.margins(y=0.01)
    dots.tick_params(axis="y", labelsize=7)
    for i, name in reversed(list(enumerate(names))):
        style = {"label": name, "color": COLORS[i]} if i < NAMED else {"color": "0.8", "linewidth": 0.8}
        lines.plot(*zip(*found[name]), **style)
    worst = max(found[name][0][1] for name in names[: len(names) // 2 + 1])
    lines.set(xlabel=TOKENS, ylabel=axis_label(LOSS), ylim=(low - margin, max(high, worst) + margin))
    count_tokens(lines.xaxis)
    handles, labels = lines.get_legend_handles_labels()
    lines.legend(handles[::-1], labels[::-1], fontsize=7)
    return write(figure, output)


def main(arguments: Sequence[str]) -> None:
    """Draw the figure and print its path."""
    parser = PlainParser(description="Final validation losses and curves of many optimizers.")
    parser.add_argument("folder", type=Path, help="folder <output>/<scale> that the benchmark wrote")
    parser.add_argument("--output", type=Path, default=Path("optimizers.png"), help="picture to write, a PNG file")
    given = parser.parse_args(arguments)
    print(*draw(curves(given.folder), given.output), sep="\n")


if __name__ == "__main__":
    run_command(main)
