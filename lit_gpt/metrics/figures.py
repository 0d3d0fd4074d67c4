"""Figures without pyplot, which keeps global state and may pick a backend that needs a display."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.utils.files import told, write_bytes


def subplots(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of so many inches, and its panels, an array (rows, columns). options: of Figure.subplots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def count_tokens(axis: Any) -> None:
    """Write the numbers of an axis as people say them: 10k, 25M, 1B."""
    from matplotlib.ticker import EngFormatter, FuncFormatter

    units = EngFormatter(sep="")
    axis.set_major_formatter(FuncFormatter(lambda x, _: units(x).replace("G", "B")))


def save(figure: Any, path: Path) -> Path:
    """Write a PNG, whole or not at all; returns its path.

    Raises UserError for a name that ends otherwise, and NotWritten where it cannot be written.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path} is no name of a figure, which is a PNG. Give a file that ends in .png.")
    from PIL import Image

    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, dpi=130, format="png")
    Image.open(full).convert("RGB").quantize(256).save(small, "PNG", optimize=True)  # a third of the bytes
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, small.getvalue())
    return path
