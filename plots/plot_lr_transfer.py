"""Does the best base learning rate stay where it is as the model grows?

    python plots/plot_lr_transfer.py out/lr_transfer --output lr_transfer.png --json lr_transfer.json

Reads every finished run in the given folders: one panel per scaling rule, one curve per depth, validation loss over the
base learning rate, the mean where a setting is repeated with other seeds. The star is the vertex of the parabola
through the lowest point and its neighbours. Prints, and writes as JSON, how far the vertex moves from the shallowest to
the deepest model, in steps of the sweep's grid. Repeated seeds give intervals of 95%; with one seed nothing tells a
move from noise.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.figures import SMALL, Look, dress, legend, panels, shades, write
from lit_gpt.lab.repeats import SEEDS, groups_of
from lit_gpt.lab.runs import FINISHED, Run, known_name, read_runs
from lit_gpt.metrics.labels import axis_label
from lit_gpt.metrics.summary import SUMMARY_FILE
from lit_gpt.scaling.noise import Difference
from lit_gpt.scaling.sweep_moves import Lowest, Moves, moves
from lit_gpt.utils.files import read_object_if_any, told, write_text

Sweeps = dict[str, dict[int, dict[tuple[float, Any], float]]]  # rule -> depth -> (rate, seeds) -> loss


def collect(paths: Iterable[Path], metric: str) -> Sweeps:
    """The losses of finished runs, rules sorted; says on stderr which runs are left out.

    Raises UserError when there are none, for a run without one of the three settings, for two runs of one rule, depth,
    rate and seed, and for runs of one rule, depth and rate that differ in more than seeds.
    """
    same: dict[tuple[str, int, float], dict[Any, Run]] = defaultdict(dict)
    losses: dict[int, float] = {}
    for run in read_runs(paths):
        loss = _loss(run, metric)
        if run.state != FINISHED or loss is None:
            why = f"no {metric}" if run.state == FINISHED else f"not finished: {run.state}"
            print(f"left out: {run.folder or run.name} ({why})", file=sys.stderr)
            continue
        rule, depth, rate = (_setting(run, name) for name in ("parameterization", "depth", "eta0"))
        runs, seeds = same[str(rule), int(depth), float(rate)], tuple(run.value(seed) for seed in SEEDS)
        if seeds in runs:
            raise UserError(
                f"{run.folder or run.name} is a second run of {rule}, depth {depth:g}, rate {rate:g} and one seed, "
                f"beside {runs[seeds].name}. Give one of them."
            )
        runs[seeds], losses[id(run)] = run, loss
    if not same:
        raise UserError(f"No finished run with {metric!r} in {', '.join(map(str, paths))}.")
    found: Sweeps = {}
    for (rule, depth, rate), runs in sorted(same.items()):
        _check_repeats(list(runs.values()))
        found.setdefault(rule, {}).setdefault(depth, {}).update({(rate, s): losses[id(run)] for s, run in runs.items()})
    return found


def _loss(run: Run, metric: str) -> float | None:
    """A column of lab/runs.py, or else any number of summary.json."""
    known = run.numbers.get(known_name(metric))
    found = read_object_if_any(run.folder / SUMMARY_FILE).get(metric) if known is None and run.folder else known
    return found if isinstance(found, int | float) else None


def _setting(run: Run, name: str) -> Any:
    if (value := run.value(name)) is None:
        raise UserError(f"The run {run.name} does not say its {name}. Leave it out, or add a column {name!r}.")
    return value


def _check_repeats(runs: Sequence[Run]) -> None:
    if len(runs) > 1 and len(groups := groups_of(runs)) > 1:
        raise UserError(
            f"{groups[0][0].name} and {groups[1][0].name} are of one rule, depth and rate, and differ in more than "
            f"their seeds. Give one of them."
        )


def as_json(found: Moves) -> dict[str, Any]:
    """What one rule's curves say; numbers that the sweep does not bracket and intervals that are unknown are None."""
    return {
        "moved": found.moved.value if found.moved else None,
        "moved_interval": _interval(found.moved),
        "depths": {
            depth: {
                "points": points,
                "lowest": min(points, key=lambda rate: points[rate]),
                "best_lr": low.setting if low else None,
                "best_lr_interval": low.interval if low else None,
                "best_loss": low.loss if low else None,
            }
            for (depth, points), low in zip(found.points.items(), found.lowest.values())
        },
    }


def _interval(moved: Difference | None) -> tuple[float, float] | None:
    return (moved.value - moved.half(), moved.value + moved.half()) if moved and moved.is_known else None


def _steps(moved: Difference) -> str:
    return f"{moved.value:+.2f}" + (f" +- {moved.half():.2f}" if moved.is_known else "")


def draw(rules: Mapping[str, Moves], metric: str, output: Path) -> list[Path]:
    """The figure: a panel per rule. Returns the paths of the pictures."""
    figure, (row,) = panels(1, len(rules), 2.6, sharey=True)
    depths = sorted({depth for found in rules.values() for depth in found.points})
    looks = dict(zip(depths, shades(len(depths))))
    for axes, (rule, found) in zip(row, rules.items()):
        for depth, points in found.points.items():
            style = {"marker": looks[depth].marker, "color": looks[depth].color, "markersize": 3, "linewidth": 0.8}
            axes.plot(list(points), list(points.values()), label=f"depth {depth:g}", **style)
            if low := found.lowest[depth]:
                _star(axes, low, looks[depth])
        told = f"\nbest rate moves {_steps(found.moved)} grid steps" if found.moved else ""
        label = axis_label(metric) if axes is row[0] else ""
        dress(axes, "base learning rate (--base_hps.eta0)", label)
        axes.set_title(f"--parameterization {rule}{told}", fontsize=SMALL)
        axes.set_xscale("log", base=2)
    row[0].plot([], [], "*", color="white", markeredgecolor="black", label="fitted minimum")
    legend(figure, list(row))
    return write(figure, output)


def _star(axes: Any, low: Lowest, look: Look) -> None:
    ends = [[low.setting - low.interval[0]], [low.interval[1] - low.setting]] if low.interval else None
    star = {"color": look.color, "markeredgecolor": "black", "markeredgewidth": 0.4, "markersize": 8, "zorder": 3}
    axes.errorbar(low.setting, low.loss, xerr=ends, fmt="*", elinewidth=0.8, capsize=2, **star)


def line(rule: str, found: Moves) -> str:
    """A line of the table: how far the best rate moves, and the best rate of each depth."""
    moved = f"moves {_steps(found.moved)} grid steps" if found.moved else "an end of the sweep is best: widen it"
    rates = ", ".join(f"d{d} {v['best_lr'] or v['lowest']:.3g}" for d, v in as_json(found)["depths"].items())
    return f"{rule:<18}{moved:<40}{rates}"


def main(arguments: Sequence[str]) -> None:
    """Draw, print a line per rule, write the JSON."""
    parser = PlainParser(
        description="Learning-rate sweeps at several depths, per scaling rule: how far the best rate moves."
    )
    parser.examples = [
        ("python plots/plot_lr_transfer.py out/lr_transfer --json lr_transfer.json", "one panel for each rule")
    ]
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="SWEEP", help="folder of runs, such as a sweep's output"
    )
    parser.add_argument("--output", type=Path, default=Path("lr_transfer.png"), help="picture to write, a PNG file")
    parser.add_argument("--json", type=Path, help="file for the numbers of the picture; default: none")
    parser.add_argument("--metric", default="metric/val_loss@1x", help="key of summary.json to draw")
    given = parser.parse_args(arguments)
    rules = {rule: moves(sweeps) for rule, sweeps in collect(given.folders, given.metric).items()}
    written = draw(rules, given.metric, given.output)
    if given.json:
        with told(given.json):
            write_text(given.json, json.dumps({rule: as_json(found) for rule, found in rules.items()}, indent=1) + "\n")
    for rule, found in rules.items():
        print(line(rule, found))
    if unknown := [rule for rule, found in rules.items() if found.moved and not found.moved.is_known]:
        print(f"{', '.join(unknown)}: the runs near the best rates do not share several seeds, so nothing tells noise.")
    print(*written, sep="\n")


if __name__ == "__main__":
    run_command(main)
