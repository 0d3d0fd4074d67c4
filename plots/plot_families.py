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
from lit_gpt.metrics.figures import save, subplots


class Panel(NamedTuple):
    """figure: its name before the `@`. log: whether lengths double from mark to mark."""

    figure: str
    x: str
    y: str
    log: bool


PANELS = (
    Panel(
        "bpb", "position in the document's window (tokens), from half of it on", "bits per byte of held-out text", True
    ),
    Panel("name_acc", "tokens since the name was last read, at most", "share of names predicted right", True),
    Panel("name_gain", "tokens since the name was last read, at most", "worth of having read it (nats per name)", True),
    Panel("nats", "entries of the phonebook", "cost of the right number (nats per token)", False),
)
SPREAD = 0.02  # families stand a little beside each other, so that their bars can be told apart


def points(figures: dict[str, list[float]], name: str) -> list[tuple[int, float, float]]:
    """(length, value, half of its interval) of a figure, by length."""
    found = [(key.partition("@"), pair) for key, pair in figures.items()]
    return sorted((int(at), middle, half) for (kind, _, at), (middle, half) in found if kind == name and at)


def draw(found: dict[str, Any], path: Path) -> Path:
    """Four panels, one line for each family."""
    figure, panels = subplots(10.0, 7.5, 2, 2)
    for axis, panel in zip(panels.flat, PANELS):
        for i, (family, figures) in enumerate(found["families"].items()):
            seeds = sum(run["family"] == family for run in found["runs"])
            label = f"{family}, {seeds} seed{'s' * (seeds > 1)}"
            if rows := points(figures, panel.figure):
                x, y, bars = zip(*rows)
                shift = 1 + SPREAD * (i - (len(found["families"]) - 1) / 2)
                axis.errorbar([at * shift for at in x], y, yerr=bars, marker="o", markersize=4, capsize=3, label=label)
        if panel.log:
            axis.set_xscale("log", base=2)
            axis.minorticks_off()
            _ticks(axis, found, panel.figure)
        axis.set_xlabel(panel.x)
        axis.set_ylabel(panel.y)
        axis.grid(alpha=0.3)
    panels[0, 0].legend(fontsize=8)
    return save(figure, path)


def _ticks(axis: Any, found: dict[str, Any], name: str) -> None:
    places = sorted({at for figures in found["families"].values() for at, _, _ in points(figures, name)})
    axis.set_xticks(places, [f"{at:,}" for at in places])


def main(arguments: Sequence[str]) -> None:
    """Draw the figure and print its path."""
    parser = PlainParser(description="Families beside each other, over position, distance and length.")
    parser.add_argument("found", type=Path, help="families.json of benchmarks/families.py")
    parser.add_argument("--output", type=Path, default=Path("families.png"), help="picture to write, a PNG file")
    given = parser.parse_args(arguments)
    try:
        found = json.loads(given.found.read_text(encoding="utf-8"))
        print(draw(found, given.output))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{given.found} is no file of benchmarks/families.py ({error!r}). Make it anew.") from error


if __name__ == "__main__":
    run_command(main)
