"""coord_check's table, JSON file and figure."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from lit_gpt.lab import figures
from lit_gpt.tools._coord_fit import TOLERANCE, Axis, CoordResult, Fit
from lit_gpt.utils.files import write_text

SIZES = {"width": "width (channels)", "depth": "depth (layers)"}
DRAWN = ("embedding", "middle mixer", "middle ffn", "branches", "stream", "logits")


def progress(line: str) -> None:
    """Say on stderr what is being trained."""
    print(line, file=sys.stderr)


def table(result: CoordResult) -> str:
    """Slopes of all sites and steps, and a verdict per axis."""
    parts = [_axis_table(result, axis) for axis in result.sizes]  # type: ignore[arg-type]
    return "\n\n".join(parts)


def _axis_table(result: CoordResult, axis: Axis) -> str:
    fits = [f for f in result.fits if f.axis == axis]
    steps = sorted({f.step for f in fits})
    sizes = ", ".join(map(str, result.sizes[axis]))
    lines = [
        f"{result.rule}: power of {axis} in mean |x| ({axis} {sizes}); x: not allowed",
        f"{'site':<14}{'of':<11}{'allowed':>14}  " + "".join(f"{'step ' + str(t):>9}" for t in steps),
    ]
    for site, quantity in dict.fromkeys((f.site, f.quantity) for f in fits):
        row = [f for f in fits if (f.site, f.quantity) == (site, quantity)]
        low, high = row[0].allowed
        allowed = f"{low:.2f}..{high:.2f}"
        lines.append(f"{site:<14}{quantity:<11}{allowed:>14}  " + "".join(map(_cell, row)))
    return "\n".join([*lines, _verdict(result, axis)])


def _cell(fit: Fit) -> str:
    mark = "x" if fit.judged and not fit.passed else " "
    return f"{'-':>8} " if fit.step == 0 and fit.quantity == "change" else f"{fit.slope:>8.2f}{mark}"


def _verdict(result: CoordResult, axis: Axis) -> str:
    failures = result.failures(axis)
    judged = sum(f.axis == axis and f.judged for f in result.fits)
    if not failures:
        return f"{axis}: PASS, all {judged} powers are as allowed (flat is within {TOLERANCE})"
    worst = failures[0]
    return (
        f"{axis}: FAIL, {len(failures)} of {judged} powers are not allowed; worst: "
        f"{worst.quantity} of {worst.site} goes as {axis}^{worst.slope:.2f} at step {worst.step}"
    )


def write(result: CoordResult, folder: Path) -> list[Path]:
    """coord_<rule>.json, .png and .pdf in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data, name = folder / f"coord_{result.rule}.json", f"coord_{result.rule}.png"
    write_text(data, json.dumps(result.to_dict(), indent=1) + "\n")
    return [data, *figures.write(_drawn(result), folder / name)]


def _drawn(result: CoordResult) -> Any:
    """A row for each site, a column for each axis, and a line for each step."""
    measured = {fit.site for fit in result.fits}  # post-norm models have no sum of branches
    drawn = [site for site in DRAWN if site in measured]
    figure, grid = figures.panels(len(drawn), len(result.sizes), height=1.35, sharex="col")
    for axis, panels in zip(result.sizes, grid.T):
        for site, panel in zip(drawn, panels):
            _panel(panel, result, axis, site)
            figures.dress(panel, SIZES[axis] if site == drawn[-1] else "", site)
        passed = result.passed(axis)  # type: ignore[arg-type]
        verdict = "PASS, all slopes are as allowed" if passed else "FAIL, not all slopes are as allowed"
        panels[0].set_title(f"{result.rule} over {axis}: {verdict}", fontsize=figures.SMALL)
    figure.supylabel("mean absolute activation", fontsize=figures.LETTERS)
    figures.legend(figure, list(grid.flat))
    return figure


def _panel(panel: Any, result: CoordResult, axis: str, site: str) -> None:
    fits = [f for f in result.fits if (f.axis, f.site, f.quantity) == (axis, site, "activation")]
    for fit, look in zip(fits, figures.shades(len(fits))):
        style = {"marker": look.marker, "color": look.color, "markersize": 3, "linewidth": 1}
        panel.plot(result.sizes[axis], fit.values, label=f"step {fit.step}", **style)
    panel.set(xscale="log", yscale="log")
    panel.set_xticks(result.sizes[axis], [str(s) for s in result.sizes[axis]], minor=False)
    _scale(panel, [value for fit in fits for value in fit.values if value > 0])
    panel.minorticks_off()


def _scale(panel: Any, values: list[float]) -> None:
    """Let the y axis span a factor of 4 at least, so that what is flat looks flat, and put numbers to it."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    ratio = max(max(values) / min(values), 4) if values else 4
    if values:
        middle, half = math.sqrt(min(values) * max(values)), 1.1 * math.sqrt(ratio)
        panel.set_ylim(middle / half, middle * half)
    multiples = (1, 2, 3, 5) if ratio < 10 else (1, 3) if ratio < 100 else (1,)
    panel.yaxis.set_major_locator(LogLocator(subs=multiples, numticks=6))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: figures.said(value)))
