"""Figures without pyplot, which keeps global state and may pick a backend that needs a display."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.utils.files import told, write_bytes

# Okabe and Ito, "Color universal design" (2008): told apart by all eyes. Yellow is left out, as white paper hides it.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def subplots(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of so many inches, and its panels, an array (rows, columns). options: of Figure.subplots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def count_tokens(axis: Any) -> None:
    """Write the numbers of an axis as people say them: 10k, 25M, 1B."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda x, _: counted(x)))


def counted(number: float) -> str:
    """10k, 25M, 1.5B."""
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")(float(f"{number:.3g}")).replace("G", "B")


def short(name: str, longest: int) -> str:
    """A name of at most so many letters: of longer ones the beginning and the end."""
    half = (longest - 3) // 2
    return name if len(name) <= longest else f"{name[:half]}...{name[-half:]}"


def spaced(names: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, from the first to the last."""
    return [names[round(i)] for i in np.linspace(0, len(names) - 1, min(most, len(names)))]


def png(figure: Any, dpi: int = 130) -> bytes:
    """The figure as a PNG of 256 colors, which is a third of the bytes."""
    from PIL import Image

    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, dpi=dpi, format="png")
    Image.open(full).convert("RGB").quantize(256).save(small, "PNG", optimize=True, dpi=(dpi, dpi))
    return small.getvalue()


def save(figure: Any, path: Path) -> Path:
    """Write a PNG, whole or not at all; returns its path.

    Raises UserError for a name that ends otherwise, and NotWritten where it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path} is no name of a figure, which is a PNG. Give a file that ends in .png.")
    image = png(figure)
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, image)
    return path
