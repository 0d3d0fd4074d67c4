"""Does the best base learning rate stay where it is as the model grows?

    python plots/plot_lr_transfer.py out/lr_transfer --output lr_transfer.png --json lr_transfer.json

Reads every finished run below the given folders (summary.json and config.yaml of each): one panel per
scaling rule, one curve per depth, validation loss over the base learning rate. The star is the
vertex of the parabola through the lowest point and its neighbours. Prints, and writes as JSON, how
far the vertex moves from the shallowest to the deepest model, in steps of the sweep's grid.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.figures import SMALL, dress, legend, panels, shades, write
from lit_gpt.lab.run_files import FINISHED, RunFiles
from lit_gpt.lab.runs import run_folders
from lit_gpt.metrics.labels import axis_label
from lit_gpt.scaling.fit import Parabola, fit_best_lr
from lit_gpt.utils.files import write_text

Points = dict[float, float]  # base learning rate -> loss


def collect(folders: Sequence[Path], metric: str) -> dict[str, dict[int, Points]]:
    """rule -> depth -> points, of finished runs with a finite loss; both sorted.

    Raises UserError when there are none, or two runs of one rule, depth and rate.
    """
    found: dict[str, dict[int, Points]] = defaultdict(lambda: defaultdict(dict))
    every = {folder.resolve(): folder for given in folders for folder in run_folders(given)}
    for folder in sorted(every.values()):
        files = RunFiles(folder)
        run, loss = files.summary, files.summary.get(metric)
        if files.state != FINISHED or loss is None:
            why = f"no {metric}" if files.state == FINISHED else f"not finished: {files.state}"
            print(f"left out: {folder} ({why})", file=sys.stderr)
            continue
        points, rate = found[run["rule"]][run["depth"]], float(files.config()["base_hps"]["eta0"])
        if rate in points:
            raise UserError(f"{folder} is a second run of {run['rule']}, depth {run['depth']}, rate {rate:g}.")
        points[rate] = loss
    if not found:
        raise UserError(f"No finished run with {metric!r} below {', '.join(map(str, folders))}.")
    return {rule: {d: dict(sorted(p.items())) for d, p in sorted(found[rule].items())} for rule in sorted(found)}


def best(points: Points) -> Parabola | None:
    """The parabola around the lowest point; None where that point is at an end of the sweep."""
    rates, losses = np.array(list(points)), np.array(list(points.values()))
    i = int(losses.argmin())
    return fit_best_lr(rates[i - 1 : i + 2], losses[i - 1 : i + 2]) if 0 < i < len(rates) - 1 else None


def summarise(depths: dict[int, Points]) -> dict[str, Any]:
    """What one rule's curves say.

    moved: grid steps from the shallowest depth to the deepest; None where an end of the sweep is best.
    """
    steps = [math.log(b / a) for p in depths.values() for a, b in zip(list(p), list(p)[1:])]
    fits = {depth: best(points) for depth, points in depths.items()}
    first, last = fits[min(depths)], fits[max(depths)]
    moved = None
    if first and last and steps:
        moved = math.log(last.best_lr / first.best_lr) / statistics.median(steps)
    return {
        "moved": moved,
        "depths": {
            depth: {
                "points": points,
                "lowest": min(points, key=lambda rate: points[rate]),
                "best_lr": fit.best_lr if fit else None,
                "best_loss": fit.best_loss if fit else None,
            }
            for (depth, points), fit in zip(depths.items(), fits.values())
        },
    }


def draw(curves: dict[str, dict[int, Points]], metric: str, output: Path) -> list[Path]:
    """The figure: a panel per rule. Returns the paths of the pictures."""
    figure, (row,) = panels(1, len(curves), 2.6, sharey=True)
    depths = sorted({depth for rule in curves.values() for depth in rule})
    looks = dict(zip(depths, shades(len(depths))))
    for axes, (rule, by_depth) in zip(row, curves.items()):
        for depth, points in by_depth.items():
            style = {"marker": looks[depth].marker, "color": looks[depth].color, "markersize": 3, "linewidth": 0.8}
            axes.plot(list(points), list(points.values()), label=f"depth {depth}", **style)
            if fit := best(points):
                star = {"color": looks[depth].color, "markeredgecolor": "black", "markeredgewidth": 0.4}
                axes.plot(fit.best_lr, fit.best_loss, "*", markersize=8, zorder=3, **star)
        moved = summarise(by_depth)["moved"]
        moves = "" if moved is None else f"\nbest rate moves {moved:+.2f} steps of the grid"
        label = axis_label(metric) if axes is row[0] else ""
        dress(axes, "base learning rate (--base_hps.eta0)", label)
        axes.set_title(f"--parameterization {rule}{moves}", fontsize=SMALL)
        axes.set_xscale("log", base=2)
    row[0].plot([], [], "*", color="white", markeredgecolor="black", label="fitted minimum")
    legend(figure, list(row))
    return write(figure, output)


def main(arguments: Sequence[str]) -> None:
    """Draw, print a line per rule, write the JSON."""
    parser = PlainParser(description="Learning-rate sweeps at several depths, per scaling rule.")
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="SWEEP", help="folder of runs, such as a sweep's output"
    )
    parser.add_argument("--output", type=Path, default=Path("lr_transfer.png"), help="picture to write, a PNG file")
    parser.add_argument("--json", type=Path, help="file for the numbers of the picture; default: none")
    parser.add_argument("--metric", default="metric/val_loss@1x", help="key of summary.json to draw")
    given = parser.parse_args(arguments)
    curves = collect(given.folders, given.metric)
    results = {rule: summarise(depths) for rule, depths in curves.items()}
    written = draw(curves, given.metric, given.output)
    if given.json:
        write_text(given.json, json.dumps(results, indent=1) + "\n")
    for rule, result in results.items():
        rates = ", ".join(f"d{d} {v['best_lr'] or v['lowest']:.3g}" for d, v in result["depths"].items())
        moved = (
            "an end of the sweep is best: widen it"
            if result["moved"] is None
            else f"moves {result['moved']:+.2f} grid steps"
        )
        print(f"{rule:<18}{moved:<40}{rates}")
    print(*written, sep="\n")


if __name__ == "__main__":
    run_command(main)
