"""Laws that are sums of products of powers, such as E + A / N^alpha + B / D^beta: their values and their fits.

The logarithm of every term is linear in the law's numbers, so that ln y = logsumexp over k of (terms_k @ point), with
terms (K, n, P) for K terms, n runs and P numbers. A number that several terms share is one column of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lit_gpt.errors import UserError

HUBER_DELTA = 0.01  # of ln(y); seeds differ by less, so this is least squares but for runs that stand out
STEPS = 400  # of the descent; most fits need 20 to 60
SETTLED = 1e-13  # relative fall of the objective below which a step is no progress
DAMPING = (1e-3, 1e12)  # at the start, and where a descent gives up
LOOK = 24  # starting points that are followed, of all that are tried
DEPENDENT = 1e-7  # smallest singular value of unit derivatives that depend on each other


@dataclass(frozen=True)
class Descent:
    """Where descents ended. points: (starts, P); values: (starts,) of the objective there."""

    points: np.ndarray
    values: np.ndarray

    @property
    def best(self) -> np.ndarray:
        return self.points[int(np.argmin(self.values))]


def log_sums(points: np.ndarray, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln y at (S, P) points, (S, n), and its derivatives by the numbers, (S, n, P)."""
    logs = np.einsum("knp,sp->skn", terms, points)
    total = np.logaddexp.reduce(logs, axis=1)
    return total, np.einsum("skn,knp->snp", np.exp(logs - total[:, None]), terms)


def huber(residual: np.ndarray, weights: np.ndarray, delta: float) -> np.ndarray:
    """Weighted sums over runs of the Huber function, (S,)."""
    clipped = np.clip(residual, -delta, delta)
    return (weights * clipped * (residual - clipped / 2)).sum(-1)


def descend(
    terms: np.ndarray,
    ln_y: np.ndarray,
    starts: np.ndarray,
    delta: float,
    weights: np.ndarray | None = None,
    free: np.ndarray | None = None,
) -> Descent:
    """Minimise the sum of Huber(delta) of (law - ln y) from many starts at once.

    terms: (K, n, P). starts: (S, P). weights: (S, n), how often each start counts each run; a bootstrap is one start
    per resample. free: (P,), the numbers that may move. Levenberg-Marquardt on the iteratively reweighted squares of the
    Huber function (Holland and Welsch 1977): runs beyond delta weigh delta / |residual|.
    """
    points = np.array(starts, dtype=np.float64)
    weights = np.ones((len(points), len(ln_y))) if weights is None else weights
    move = np.ones(points.shape[1], dtype=bool) if free is None else free
    damping = np.full(len(points), DAMPING[0])
    model, slopes = log_sums(points, terms)
    values = huber(model - ln_y, weights, delta)
    active = np.isfinite(values)
    for _ in range(STEPS):
        if not active.any():
            break
        here = np.flatnonzero(active)
        residual = model[here] - ln_y
        heavy = weights[here] / np.maximum(np.abs(residual) / delta, 1.0)
        steps = _steps(slopes[here][..., move], residual, heavy, damping[here])
        tried = points[here]
        tried[:, move] += steps
        new_model, new_slopes = log_sums(tried, terms)
        new = huber(new_model - ln_y, weights[here], delta)
        better = new < values[here]
        settled = better & (values[here] - new <= SETTLED * values[here])
        at = here[better]
        points[at], values[at], model[at], slopes[at] = (
            tried[better],
            new[better],
            new_model[better],
            new_slopes[better],
        )
        damping[here] = np.where(better, damping[here] / 5, damping[here] * 4)
        active[here] = ~settled & (damping[here] < DAMPING[1])
    return Descent(points, values)


def _steps(slopes: np.ndarray, residual: np.ndarray, weights: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Damped Gauss-Newton steps, (S, free numbers)."""
    weighted = slopes * weights[..., None]
    normal = np.einsum("snp,snq->spq", weighted, slopes)
    pull = np.einsum("snp,sn->sp", weighted, residual)
    diagonal = np.einsum("spp->sp", normal)
    scale = np.sqrt(np.maximum(diagonal, 1e-30))
    unit = normal / (scale[:, :, None] * scale[:, None, :])
    unit += (damping[:, None] + 1e-15)[..., None] * np.eye(slopes.shape[-1])
    return -np.linalg.solve(unit, (pull / scale)[..., None])[..., 0] / scale


def fit_sum(
    terms: np.ndarray, ln_y: np.ndarray, starts: np.ndarray, delta: float, free: np.ndarray | None = None
) -> np.ndarray:
    """The numbers of the best law, (P,): the lowest of the starts are followed.

    Raises UserError for fewer runs than free numbers.
    """
    needed = terms.shape[-1] if free is None else int(free.sum())
    if terms.shape[1] < needed:
        raise UserError(f"This fit has {needed} free numbers and got {terms.shape[1]} runs. Add runs.")
    values = huber(log_sums(starts, terms)[0] - ln_y, np.ones((len(starts), len(ln_y))), delta)
    return descend(terms, ln_y, starts[np.argsort(values)[:LOOK]], delta, free=free).best


def undetermined(terms: np.ndarray, point: np.ndarray, free: np.ndarray | None = None) -> bool:
    """Whether the law can change and stay what it is at every run: its derivatives there depend on each other."""
    slopes = log_sums(point[None], terms)[1][0]
    slopes = slopes if free is None else slopes[:, free]
    lengths = np.linalg.norm(slopes, axis=0)
    return bool((lengths < 1e-12).any()) or float(np.linalg.svd(slopes / lengths, compute_uv=False)[-1]) < DEPENDENT
