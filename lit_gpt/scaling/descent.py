"""Least squares, and Huber's, from many starting points or over many sets of data at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEPS = 400  # of the descent; most fits need 20 to 60
SETTLED = 1e-13  # relative fall of the objective below which a step is no progress
DAMPING = (1e-3, 1e12)  # at the start, and where a descent gives up
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def huber(residual: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """Weighted sums over runs of the Huber function, (S,); half of the squares for an infinite delta."""
    clipped = np.clip(residual, -delta, delta)
    return (weights * clipped * (residual - clipped / 2)).sum(-1)


def descend(
    model: Model, y: np.ndarray, starts: np.ndarray, weights: np.ndarray, free: np.ndarray, delta: float = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the sum of Huber functions of model - y from many starts at once: points (S, P), values (S,).

    model: points (S, P) -> what it says of each run, (S, n), and its derivatives, (S, n, P). y: (n,) or (S, n).
    weights: (S, n), how often each start counts each run. free: (P,), the numbers that may move.
    Levenberg-Marquardt on the iteratively reweighted squares of the Huber function (Holland and Welsch 1977): runs
    beyond delta weigh delta / |residual|.
    """
    points, y = np.array(starts, dtype=np.float64), np.broadcast_to(y, weights.shape)
    damping = np.full(len(points), DAMPING[0])
    said, slopes = (np.array(values) for values in model(points))
    values = huber(said - y, weights, delta)
    active = np.isfinite(values)
    for _ in range(STEPS):
        here = np.flatnonzero(active)
        if not len(here):
            break
        left = said[here] - y[here]
        heavy = weights[here] / np.maximum(np.abs(left) / delta, 1.0)
        tried = points[here]
        tried[:, free] += _steps(slopes[here][..., free], left, heavy, damping[here])
        new_said, new_slopes = model(tried)
        new = huber(new_said - y[here], weights[here], delta)
        better = new < values[here]
        settled = better & (values[here] - new <= SETTLED * values[here])
        at = here[better]
        points[at], values[at], said[at], slopes[at] = tried[better], new[better], new_said[better], new_slopes[better]
        damping[here] = np.where(better, damping[here] / 5, damping[here] * 4)
        active[here] = ~settled & (damping[here] < DAMPING[1])
    return points, values


def _steps(slopes: np.ndarray, residual: np.ndarray, weights: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Damped Gauss-Newton steps, (S, free numbers)."""
    weighted = (slopes * weights[..., None]).transpose(0, 2, 1)
    normal, pull = weighted @ slopes, weighted @ residual[..., None]
    scale = np.sqrt(np.maximum(np.einsum("spp->sp", normal), 1e-30))
    unit = normal / (scale[:, :, None] * scale[:, None, :])
    unit += (damping[:, None] + 1e-15)[..., None] * np.eye(slopes.shape[-1])
    return -np.linalg.solve(unit, pull / scale[..., None])[..., 0] / scale
