"""Figures without pyplot, which keeps global state and may pick a backend that needs a display."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def subplots(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure of so many inches, and its panels, an array (rows, columns). options: of Figure.subplots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Any, path: Path) -> Path:
    """Write a PNG, whole or not at all; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=130, format="png")
    os.replace(temporary, path)
    return path
