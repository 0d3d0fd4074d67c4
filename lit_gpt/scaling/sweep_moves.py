"""How far the best setting moves from one sweep to another, such as the best rate from a small model to a large one.

The best setting of a sweep is the lowest point of the parabola in ln(setting) through the lowest mean loss and the two
beside it. Where settings are repeated with other seeds, the noise of those runs beside the others of their seed
(scaling/noise.py), pooled over the sweeps, gives every best setting and the move an interval by the delta method.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lit_gpt.scaling.noise import Blocks, Difference, fit_blocks
from lit_gpt.scaling.sweeps import fit_optima

Runs = Mapping[tuple[float, Any], float]  # (setting, seed) -> loss, of the runs of a sweep


@dataclass(frozen=True)
class Lowest:
    """The lowest point of a parabola.

    setting, loss: where it is. interval: of the setting, at noise.LEVEL; None where nothing tells the noise, or where
    it is too wide for a float. weights: how ln(setting) changes with the loss of each of three settings.
    """

    setting: float
    loss: float
    interval: tuple[float, float] | None
    weights: Mapping[float, float]


@dataclass(frozen=True)
class Moves:
    """What sweeps at several x say. points: x -> setting -> mean loss over all seeds; both ascend.

    lowest: of each x; None where an end of its sweep is lowest. moved: ln(setting) from the least x to the largest, in
    steps of the grid (the median ratio of neighbours); None where either has no lowest point.
    """

    points: Mapping[Any, Mapping[float, float]]
    lowest: Mapping[Any, Lowest | None]
    moved: Difference | None


def moves(sweeps: Mapping[Any, Runs]) -> Moves:
    """Of the runs at each x, a positive number.

    Raises UserError for settings and losses that are not positive, and for losses that differ by rounding alone.
    """
    points = {x: _means(runs) for x, runs in sorted(sweeps.items())}
    around = {x: _around(means) for x, means in points.items()}
    near = {((x, s), (x, seed)): loss for x in points for (s, seed), loss in sweeps[x].items() if s in around[x]}
    if not near:
        return Moves(points, dict.fromkeys(points), None)
    fit = fit_blocks(near)
    lowest = {x: _lowest(x, {s: points[x][s] for s in three}, fit) if three else None for x, three in around.items()}
    return Moves(points, lowest, _moved(points, lowest, fit))


def _means(runs: Runs) -> dict[float, float]:
    """Settings in order, and their mean losses: over all seeds, also of those that a setting lacks."""
    of_setting: dict[float, dict[Any, float]] = defaultdict(dict)
    for (setting, seed), loss in runs.items():
        of_setting[setting][seed] = loss
    found = {setting: statistics.fmean(losses.values()) for setting, losses in sorted(of_setting.items())}
    if len({frozenset(losses) for losses in of_setting.values()}) > 1:
        fit = fit_blocks(runs)
        found |= zip(fit.treatments, fit.means() or [found[setting] for setting in fit.treatments])
    return found


def _around(means: Mapping[float, float]) -> list[float]:
    """The setting of the lowest mean between its neighbours; none where it is at an end."""
    settings = list(means)
    at = settings.index(min(settings, key=lambda setting: means[setting]))
    return settings[at - 1 : at + 2] if 0 < at < len(settings) - 1 else []


def _lowest(x: float, near: Mapping[float, float], fit: Blocks) -> Lowest:
    """The parabola through three settings and their mean losses."""
    settings = np.array(list(near))
    (found,) = fit_optima(np.full(3, float(x)), settings, np.array(list(near.values()))).optima
    # Around its lowest point, a parabola's slope moves that point by -slope / (2 curvature).
    slope = np.linalg.pinv(np.vander(np.log(settings / found.best), 3))[1]
    weights = dict(zip(near, (-slope / (2 * found.curvature)).tolist()))
    half = fit.weighted([((x, setting), weight) for setting, weight in weights.items()]).half()
    ends = (found.best * math.exp(-half), found.best * math.exp(half)) if half < 700 else None  # also for NaN
    return Lowest(found.best, found.loss, ends, weights)


def _moved(
    points: Mapping[Any, Mapping[float, float]], lowest: Mapping[Any, Lowest | None], fit: Blocks
) -> Difference | None:
    low, high = min(lowest), max(lowest)
    first, last = lowest[low], lowest[high]
    if not first or not last:
        return None
    grids = [list(means) for means in points.values()]
    step = statistics.median(math.log(b / a) for grid in grids for a, b in pairwise(grid))
    terms = [((x, s), sign * w) for x, of, sign in ((low, first, -1), (high, last, 1)) for s, w in of.weights.items()]
    error = fit.weighted(terms)
    return Difference(math.log(last.setting / first.setting) / step, error.error / step, error.free)
