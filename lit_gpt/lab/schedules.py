"""A figure of what a study will do: the learning rate of its runs over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_gpt.lab.figures import DPI, along, dress, legend, looks, panels
from lit_gpt.lab.planning import Planned
from lit_gpt.scaling.schedule import fraction
from lit_gpt.utils.files import replacing, told

POINTS = 400  # of a curve


def draw_schedules(rows: Sequence[Planned], path: Path) -> Path:
    """One line per different schedule, on a logarithmic axis of tokens where budgets are far apart."""
    curves: dict[bytes, tuple[str, np.ndarray]] = {}
    for p in rows:
        curve = np.stack(rates_of(p))
        curves.setdefault(curve.tobytes(), (p.row.name, curve))
    figure, grid = panels()
    axes = grid[0, 0]
    for look, (name, curve) in zip(looks(len(curves)), curves.values()):
        style = {"color": look.color, "marker": look.marker, "markersize": 3.5, "markevery": 0.2, "linewidth": 1.0}
        axes.plot(*curve, label=name, **style)
    dress(axes, "training tokens", "learning rate of matrices")
    along(axes, "x", "tokens", [p.resolved.plan.tokens for p in rows])
    legend(figure, [axes], others=" schedules")
    with told(path), replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", dpi=DPI)
    return path


def rates_of(p: Planned) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, learning rates of matrices) of a run, from where it goes on from another one."""
    plan = p.resolved.plan
    start = max(p.row.start, plan.tokens // 1000)  # on a logarithmic axis, what comes before is only long
    tokens = np.unique(
        np.concatenate([np.geomspace(start, plan.tokens, POINTS), np.linspace(start, plan.tokens, POINTS)])
    )
    peak = plan.roles["matrix"].lr
    return tokens, peak * np.array([fraction(plan.schedule, float(t)) for t in tokens])
