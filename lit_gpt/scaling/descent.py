"""Least squares, and Huber's, from many starting points or over many sets of data at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

STEPS = 400  # of the descent; most fits need 10 to 40
SETTLED = 1e-13  # relative fall of the objective below which a step is no progress
DAMPING = (1e-3, 1e12)  # at the start, and where a descent gives up
Bend = Callable[[np.ndarray], np.ndarray]
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, Bend | None]]


def huber(residual: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """Weighted sums over runs of the Huber function, (S,); half of the squares for an infinite delta."""
    clipped = np.clip(residual, -delta, delta)
    return (weights * clipped * (residual - clipped / 2)).sum(-1)


def descend(
    model: Model,
    y: np.ndarray,
    starts: np.ndarray,
    weights: np.ndarray,
    free: np.ndarray,
    delta: float = np.inf,
    steps: int = STEPS,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise the sum of Huber functions of model - y from many starts at once: points (S, P), values (S,).

    model: points (S, P) -> what it says of each run, (S, n), its derivatives, (S, n, P), and its bend: factors (S, n)
    -> the sums over runs of factor times second derivatives, (S, P, P); None takes these for 0, as Gauss and Newton do.
    y: (n,) or (S, n). weights: (S, n), how often each start counts each run. free: (P,), the numbers that may move.

    Newton's steps, damped as Levenberg and Marquardt do, with the sign of curvatures removed, so that they descend
    (Dauphin et al., arXiv:1406.2572). Beyond delta Huber's function is straight, so there the derivatives of the model
    alone bend it: reweighted least squares, the usual way, takes hundreds of steps where most runs are beyond it.
    """
    points, y = np.array(starts, dtype=np.float64), np.broadcast_to(y, weights.shape)
    damping = np.full(len(points), DAMPING[0])
    state = _derivatives(model, points, y, weights, free, delta)
    active = np.isfinite(state[0])
    for _ in range(steps):
        here = np.flatnonzero(active)
        if not len(here):
            break
        value, gradient, second, unit = (part[here] for part in state)
        tried = points[here]
        tried[:, free] += _steps(gradient, second, unit, damping[here])
        new = _derivatives(model, tried, y[here], weights[here], free, delta)
        better = new[0] < value
        settled = better & (value - new[0] <= SETTLED * value) & (damping[here] < 1)
        at = here[better]
        points[at] = tried[better]
        for old, part in zip(state, new):
            old[at] = part[better]
        damping[here] = np.where(better, damping[here] / 5, damping[here] * 4)
        active[here] = ~settled & (damping[here] < DAMPING[1])
    return points, state[0]


def _derivatives(
    model: Model, points: np.ndarray, y: np.ndarray, weights: np.ndarray, free: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Objective (S,), gradient (S, F), second derivatives (S, F, F), and the length of a unit of each number, (S, F).

    F: the free numbers. A unit changes the squares by 1, with runs beyond delta weighing delta / |residual| (Holland
    and Welsch 1977): damping in it does not depend on what the numbers are of.
    """
    said, slopes, bend = model(points)
    slopes, left = slopes[..., free], said - y
    pull, inside = weights * np.clip(left, -delta, delta), weights * (np.abs(left) < delta)
    second = (slopes * inside[..., None]).transpose(0, 2, 1) @ slopes
    if bend is not None:
        second += bend(pull)[:, free][:, :, free]
    heavy = weights / np.maximum(np.abs(left) / delta, 1.0)
    unit = np.sqrt(np.maximum(np.einsum("sn,snp->sp", heavy, slopes**2), 1e-30))
    return huber(left, weights, delta), np.einsum("sn,snp->sp", pull, slopes), second, unit


def _steps(gradient: np.ndarray, second: np.ndarray, unit: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Damped Newton steps, (S, F)."""
    curvatures, axes = np.linalg.eigh(second / (unit[:, :, None] * unit[:, None, :]))
    along = (axes.transpose(0, 2, 1) @ (gradient / unit)[..., None])[..., 0]
    along /= np.abs(curvatures) + damping[:, None] + 1e-15
    return -(axes @ along[..., None])[..., 0] / unit
