"""Draw what benchmarks/families.py found: four figures over position, distance and length, for each family.

    python plots/plot_families.py out/families_judged/families.json --output families.png

Bars are the 95% intervals of the file, over examples and seeds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.config.command import run_command
from lit_gpt.config.parsers import PlainParser
from lit_gpt.errors import UserError
from lit_gpt.lab.figures import looks, write
from lit_gpt.metrics.figures import subplots


class Panel(NamedTuple):
    """figure: its name before the `@`. of: families, or differences. log: whether lengths double from mark to mark."""

    figure: str
    of: str
    x: str
    y: str
    log: bool


POSITION = "positions from half of this number up to it (tokens)"
PANELS = (
    Panel("bpb", "families", POSITION, "bits per byte of held-out text", True),
    Panel("bpb", "differences", POSITION, "bits per byte, less those of {base}", True),
    Panel("name_acc", "families", "tokens since the name was read (at most)", "share of names predicted right", True),
    Panel("nats", "families", "entries of the phonebook", "cost of the right number (nats per token)", False),
)
SPREAD = 0.02  # families stand a little beside each other, so that their bars can be told apart


def points(figures: dict[str, list[float]], name: str) -> list[tuple[int, float, float]]:
    """(length, value, half of its interval) of a figure, by length."""
    found = [(key.partition("@"), pair) for key, pair in figures.items()]
    return sorted((int(at), middle, half) for (kind, _, at), (middle, half) in found if kind == name and at)


def draw(found: dict[str, Any], path: Path) -> list[Path]:
    """Four panels, one line for each family. Returns the paths of the pictures."""
    figure, axes = subplots(10.0, 7.5, 2, 2)
    families = list(found["families"])
    for axis, panel in zip(axes.flat, PANELS):
        places: set[int] = set()
        for i, (family, look) in enumerate(zip(families, looks(len(families)))):
            rows = points(found[panel.of].get(family, {}), panel.figure)
            shift = 1 + SPREAD * (i - (len(families) - 1) / 2)
            seeds = sum(run["family"] == family for run in found["runs"])
            label = f"{family}, {seeds} seed{'s' * (seeds > 1)}"
            x, y, bars = (
                [at * shift for at, _, _ in rows],
                [middle for _, middle, _ in rows],
                [half for *_, half in rows],
            )
            axis.errorbar(x, y, yerr=bars, marker=look.marker, markersize=4, capsize=3, color=look.color, label=label)
            places |= {at for at, _, _ in rows}
        if panel.log:
            axis.set_xscale("log", base=2)
            axis.minorticks_off()
            axis.set_xticks(sorted(places), [f"{at:,}" for at in sorted(places)])
        if panel.of == "differences":
            axis.axhline(0, color="black", linewidth=0.8)
        axis.set_xlabel(panel.x, fontsize=9)
        axis.set_ylabel(panel.y.format(base=families[0]), fontsize=9)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    return write(figure, path)


def main(arguments: Sequence[str]) -> None:
    """Draw the figure and print its path."""
    parser = PlainParser(description="Families beside each other, over position, distance and length.")
    parser.add_argument("found", type=Path, help="families.json of benchmarks/families.py")
    parser.add_argument("--output", type=Path, default=Path("families.png"), help="picture to write, a PNG file")
    given = parser.parse_args(arguments)
    try:
        found = json.loads(given.found.read_text(encoding="utf-8"))
        print(*draw(found, given.output), sep="\n")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{given.found} is no file of benchmarks/families.py ({error!r}). Make it anew.") from error


if __name__ == "__main__":
    run_command(main)
