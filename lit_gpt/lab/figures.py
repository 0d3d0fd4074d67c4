"""What figures share: width, colours and markers, axes in words and units, legends that cover nothing, and files.

A figure is as wide as a column of a paper, and its letters are of the size that they have there.
"""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_gpt.lab.fit_steps import words
from lit_gpt.metrics.figures import COLORS, count_tokens, counted, png, short, spaced, subplots
from lit_gpt.metrics.summary import jsonable
from lit_gpt.utils.files import told, write_bytes, write_text

COLUMN, PAGE = 3.3, 6.8  # inches: one column of a paper, and two
DPI, COARSE = 300, 130  # pixels per inch: what journals ask for, and of figures wider than a page
LETTERS, SMALL = 8, 7  # points, of labels and of numbers at ticks
MARKERS = "osD^vP*X<>hp"
LISTED = 12  # entries of a legend, of which there may be more in the JSON file
LONGEST = 30  # letters of a name in a legend
COUNTED = ("tokens", "parameters", "parameters_total", "parameters_all", "batch", "unique_tokens", "total_tokens")
ON_AXES = {  # words of lab/runs.py that are longer than an axis
    "flops": "compute (FLOPs with head and attention)",
    "flops_6nd": "compute (6 x parameters x tokens)",
    "parameters": "active parameters (no embeddings)",
    "parameters_total": "parameters (all experts, no embeddings)",
    "parameters_all": "parameters (all experts and embeddings)",
    "sparsity": "sparsity (experts / active experts)",
    "granularity": "granularity (active experts)",
    "rate": "peak learning rate of matrices",
}
WIDE = 5.0  # largest over smallest, from which an axis is logarithmic
# Largest over smallest, up to which ticks of a logarithmic axis stand at these multiples of powers of ten.
MULTIPLES = ((12.0, (1, 2, 5)), (300.0, (1, 3)))


class Look(NamedTuple):
    """How one group is drawn: colours and markers both differ, so that grey print tells groups apart too."""

    color: Any
    marker: str


def looks(count: int) -> list[Look]:
    """One look for each of `count` groups: of viridis, in their order, where there are more than COLORS has."""
    import matplotlib

    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, count))
    colors = COLORS[:count] if count <= len(COLORS) else [tuple(shade) for shade in shades]
    return [Look(color, MARKERS[i % len(MARKERS)]) for i, color in enumerate(colors)]


def shades(count: int) -> list[Look]:
    """The same for groups that have an order, such as sizes: viridis, dark for the first."""
    import matplotlib

    found = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, count))
    return [Look(tuple(color), MARKERS[i % len(MARKERS)]) for i, color in enumerate(found)]


def panels(rows: int = 1, columns: int = 1, height: float = 2.3, **options: Any) -> tuple[Any, Any]:
    """A figure, and its panels, an array (rows, columns). height: of a row, in inches; legends come on top of it."""
    return subplots(COLUMN if columns == 1 else PAGE, height * rows, rows, columns, **options)


def dress(axes: Any, x: str = "", y: str = "", title: str = "", tall: int = 34) -> None:
    """Labels in words, broken where they are longer than the panel, and a grid. tall: letters along its height."""
    axes.set_xlabel(broken(x, 38), fontsize=LETTERS)
    axes.set_ylabel(broken(y, tall), fontsize=LETTERS)
    numbers = [title] if len(title) <= 44 else title.replace("), ", "),\n").split("\n")  # each beside its interval
    axes.set_title("\n".join(broken(line, 44) for line in numbers), fontsize=SMALL)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.grid(alpha=0.25, linewidth=0.5)


def broken(text: str, width: int) -> str:
    """The text in lines of so many letters, if possible with its unit on a line of its own."""
    name, bracket, unit = text.partition(" (")
    parts = [text] if len(text) <= width or not bracket else [name, f"({unit}"]
    return "\n".join(line for part in parts for line in textwrap.wrap(part, width))


def shown(column: str) -> str:
    """A column in words and units, on an axis."""
    return ON_AXES.get(column) or words(column)


def along(axes: Any, which: str, column: str, values: Iterable[float], even: bool = False) -> None:
    """Scale one axis, "x" or "y", for a column: logarithmic where values are far apart, unless it is to be even.

    Numbers are written as people say them, and an axis of less than a decade has some as well.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    found = np.array([value for value in values if np.isfinite(value)])
    if not len(found):
        return
    axis = getattr(axes, f"{which}axis")
    if not even and found.min() > 0 and found.max() >= WIDE * found.min():
        getattr(axes, f"set_{which}scale")("log")
        multiples = next((m for most, m in MULTIPLES if found.max() <= most * found.min()), (1,))
        axis.set_major_locator(LogLocator(subs=multiples, numticks=6))
        axis.set_minor_locator(NullLocator() if len(multiples) > 1 else LogLocator(subs=range(2, 10), numticks=6))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))
    else:
        axis.set_major_locator(MaxNLocator(5, integer=bool((found == found.round()).all() and np.ptp(found) > 1)))
    if column in COUNTED:
        count_tokens(axis)


def said(value: float) -> str:
    """A number as an axis shows it: 0.02, 500, and powers of ten for the others."""
    if 1e-3 <= abs(value) < 1e4 or value == 0:
        return f"{value:g}"
    digits, _, power = f"{value:.1e}".partition("e")
    digits = digits.removesuffix(".0")
    return rf"$10^{{{int(power)}}}$" if digits == "1" else rf"${digits}\!\times\!10^{{{int(power)}}}$"


def value_of(value: float, column: str) -> str:
    """A value of a column as a legend says it, after the column's words: depth 8, batch 131k."""
    name = words(column).partition(" (")[0]
    number = counted(value) if column in COUNTED else f"{value:.4g}" if value < 1e6 else said(float(f"{value:.1e}"))
    return f"{name} {number}" if len(name) < 20 else number


def legend(figure: Any, axes: Sequence[Any], listed: int = LISTED, others: str = "; the JSON file has all") -> None:
    """One entry for each label of these panels, below them, where it covers no point; of many, some.

    others: where a person finds the rest.
    """
    found: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels()):
            found.setdefault(label, handle)
    if len(found) < 2:  # one name tells nothing apart
        return
    labels = spaced(list(found), listed)
    handles = [found[label] for label in labels]
    names = [short(label, LONGEST) for label in labels]
    title = None if len(found) <= listed else f"{listed} of {len(found)}{others}"
    letters = max(len(re.sub(r"\\[a-z!]+|[{}$^]", "", label)) for label in names)  # of which mathtext shows none
    columns = max(1, int(figure.get_figwidth() / (0.5 + 0.06 * letters)))
    add = {"ncols": min(columns, len(names)), "fontsize": SMALL, "frameon": False, "title": title}
    height = 0.14 * -(-len(names) // add["ncols"]) + 0.1 + (0.15 if title else 0)
    figure.set_figheight(figure.get_figheight() + height)  # panels keep their height
    figure.legend(handles, names, loc="outside lower center", title_fontsize=SMALL, columnspacing=1.0, **add)


def write(figure: Any, output: Path, found: Mapping[str, Any] | None = None, numbers: Path | None = None) -> list[Path]:
    """Write the picture as PNG and PDF, and what was fitted as JSON, all or none of the pictures; returns the paths.

    output: of the PNG; the others are called the same but for `numbers`, a path for the JSON. found: None for no JSON.
    """
    image, page = png(figure, DPI if figure.get_figwidth() <= PAGE else COARSE), pdf(figure)
    name = output.with_suffix("") if output.suffix in (".png", ".pdf", ".json") else output  # names may have dots
    png_path, pdf_path = Path(f"{name}.png"), Path(f"{name}.pdf")
    with told(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(png_path, image)
        write_bytes(pdf_path, page)
    if found is None:
        return [png_path, pdf_path]
    numbers = numbers or Path(f"{name}.json")
    with told(numbers):
        write_text(numbers, json.dumps(jsonable(dict(found)), indent=1) + "\n")
    return [png_path, pdf_path, numbers]


def pdf(figure: Any) -> bytes:
    """The figure as PDF, with letters as letters, and the same bytes each time."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # TrueType, which journals ask for
        figure.savefig(buffer, format="pdf", metadata={"CreationDate": None})
    return buffer.getvalue()
