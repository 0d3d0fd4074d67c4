"""The optima of an isoFLOP study's budgets, as figures draw them and their JSON has them."""

from __future__ import annotations

from typing import Any

from lit_gpt.lab.fit_report import Report
from lit_gpt.scaling.vertices import Vertex, vertices


def vertices_of(report: Report) -> list[Vertex]:
    """The budgets that the law was fitted to. report: of the law isoflop."""
    return vertices(report.points, report.noise, len(report.draws.fits) if report.draws else 0, report.level)


def told(report: Report) -> list[dict[str, Any]]:
    """The same as rows."""
    return [{"flops": v.flops, **v.place, "intervals": v.intervals} for v in vertices_of(report)]
