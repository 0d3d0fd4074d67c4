"""A figure of what a study will do: the learning rate of its runs over tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lit_gpt.lab.planning import Planned
from lit_gpt.scaling.schedule import fraction
from lit_gpt.utils.files import replacing

POINTS = 400  # of a curve
LEGEND = 12  # runs with a name of their own in the figure


def draw_schedules(rows: Sequence[Planned], path: Path) -> Path:
    """One line per different schedule, on a logarithmic axis of tokens where budgets differ by more than four times."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
    curves: dict[tuple[float, ...], str] = {}
    for p in rows:
        tokens, rates = rates_of(p)
        key = (*tokens, *rates)
        if key not in curves:
            curves[key] = p.row.name
            axes.plot(tokens, rates, label=p.row.name, linewidth=1.2)
    ends = [p.resolved.plan.tokens for p in rows]
    if max(ends) > 4 * min(ends):
        axes.set_xscale("log")
    axes.set_xlabel("training tokens")
    axes.set_ylabel("learning rate of matrices")
    axes.grid(alpha=0.3)
    if len(curves) <= LEGEND:
        axes.legend(fontsize=6)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", dpi=200)
    plt.close(figure)
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
