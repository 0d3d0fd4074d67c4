"""Many fits of ln(L) = ln(A / N^alpha + B / D^beta + E) at once, by Newton's method on the sum of Huber functions.

The objective is of Hoffmann et al. 2022 (2203.15556), section 3.3. Points are (..., 5): a, b, e, alpha, beta, where a,
b and e are the logarithms of A, B and E.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_gpt.scaling.descent import huber

HUBER_DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3
STEPS = 300  # of Newton's method; 1000 resamples of 240 runs need about 30 each
SMALL = 1e-12  # a gradient of rounding errors: the derivatives of a point are HUBER_DELTA each
DAMPING = 1e-9, 1e6  # in units of the mean curvature
FARTHEST = 2.0  # the longest step; starting points are about 5 apart


class Design:
    """The columns of the runs that all fits share: ln N, ln D (runs,), without their means, which a and b take up."""

    def __init__(self, ln_n: np.ndarray, ln_d: np.ndarray):
        self.means = np.array([ln_n.mean(), ln_d.mean()])
        n, d = ln_n - self.means[0], ln_d - self.means[1]
        one, none = np.ones_like(n), np.zeros_like(n)
        # The derivatives of the three logarithmic terms by the five numbers, (3, runs, 5).
        self.by_number = np.stack(
            [
                np.stack([one, none, none, -n, none], -1),
                np.stack([none, one, none, none, -d], -1),
                np.stack([none, none, one, none, none], -1),
            ]
        )

    def inner(self, points: np.ndarray) -> np.ndarray:
        """The points for logarithms without their means."""
        moved = points.copy()
        moved[..., :2] -= points[..., 3:] * self.means
        return moved

    def outer(self, points: np.ndarray) -> np.ndarray:
        """The reverse of inner."""
        moved = points.copy()
        moved[..., :2] += points[..., 3:] * self.means
        return moved

    def terms(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the three terms in the loss, (3, fits, runs), and the logarithm of the loss, (fits, runs)."""
        terms = points @ self.by_number.transpose(0, 2, 1)
        highest = terms.max(0)
        shares = np.exp(terms - highest)
        total = shares.sum(0)
        return shares / total, highest + np.log(total)


def derivatives(
    design: Design, points: np.ndarray, ln_loss: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objective (fits,), gradient (fits, 5) and second derivatives (fits, 5, 5) at inner points (fits, 5)."""
    shares, ln_sum = design.terms(points)
    residual = ln_sum - ln_loss
    pull = weight * np.clip(residual, -HUBER_DELTA, HUBER_DELTA)
    slopes = np.einsum("jfr,jrk->frk", shares, design.by_number)
    gradient = np.einsum("fr,frk->fk", pull, slopes)
    inside = weight * (np.abs(residual) < HUBER_DELTA) - pull  # log-sum-exp bends by its terms' spread
    second = (slopes * inside[..., None]).transpose(0, 2, 1) @ slopes
    products = (design.by_number[:, :, :, None] * design.by_number[:, :, None, :]).reshape(3, -1, 25)
    second += ((shares * pull) @ products).sum(0).reshape(-1, 5, 5)
    return huber(residual, weight, HUBER_DELTA), gradient, second


def minimise(
    start: np.ndarray,
    ln_n: np.ndarray,
    ln_d: np.ndarray,
    ln_loss: np.ndarray,
    weight: np.ndarray,
    held: Sequence[int] = (),
    steps: int = STEPS,
) -> tuple[np.ndarray, np.ndarray]:
    """The points of least objective near `start` (fits, 5), and whether each was reached, (fits,).

    ln_loss, weight: (fits, runs) or (runs,), the weight is how often a run counts. held: which of e, alpha and beta
    stay as they are. Newton's steps with the curvature's
    sign removed, so that they descend, and damped as Levenberg and Marquardt do; each fit on its own.
    """
    design = Design(ln_n, ln_d)
    points, shape = design.inner(start), (len(start), len(ln_n))
    ln_loss, weight = np.broadcast_to(ln_loss, shape), np.broadcast_to(weight, shape)
    damping, done = np.full(len(start), 1e-3), np.zeros(len(start), dtype=bool)
    for _ in range(steps):
        rows = np.flatnonzero(~done)
        if not len(rows):
            break
        value, gradient, second = derivatives(design, points[rows], ln_loss[rows], weight[rows])
        gradient[:, held], second[:, held], second[:, :, held] = 0.0, 0.0, 0.0
        tried = points[rows] + _step(gradient, second, damping[rows])
        better = huber(design.terms(tried)[1] - ln_loss[rows], weight[rows], HUBER_DELTA) < value
        points[rows] = np.where(better[:, None], tried, points[rows])
        damping[rows] = np.clip(damping[rows] * np.where(better, 0.2, 6.0), *DAMPING)
        done[rows] = (np.abs(gradient).max(-1) < SMALL) | (~better & (damping[rows] >= DAMPING[1]))
    return design.outer(points), done


def _step(gradient: np.ndarray, second: np.ndarray, damping: np.ndarray) -> np.ndarray:
    curvatures, axes = np.linalg.eigh(second)
    curvatures = np.abs(curvatures)
    curvatures += damping[:, None] * curvatures.mean(-1, keepdims=True) + 1e-30
    step = -(axes @ ((axes.transpose(0, 2, 1) @ gradient[..., None]) / curvatures[..., None]))[..., 0]
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    return step * np.minimum(1.0, FARTHEST / np.maximum(length, 1e-300))
