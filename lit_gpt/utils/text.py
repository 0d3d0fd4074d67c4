"""Text that is laid out for a person."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(rows: Sequence[Sequence[str]], *, indent: int = 0, right: Collection[int] = ()) -> str:
    """Rows of cells as lines with aligned columns; `right`: columns aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)
