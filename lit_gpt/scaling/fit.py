"""Fits of scaling curves: power laws, the best learning rate of a sweep, and Chinchilla's approach 3."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TypeVar

import numpy as np

from lit_gpt.errors import UserError

Fit = TypeVar("Fit")
HUBER_DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3


@dataclass(frozen=True)
class PowerLaw:
    """y = a * x^(-b) + c."""

    a: float
    b: float
    c: float = 0.0

    def __call__(self, x: np.ndarray | float) -> np.ndarray:
        return self.a * np.asarray(x, dtype=np.float64) ** -self.b + self.c

    def inverse(self, y: float) -> float:
        """The x that reaches y; infinite at or below the floor c. Two fits' ratio is compute leverage."""
        return (self.a / (y - self.c)) ** (1 / self.b) if y > self.c else math.inf


def fit_power_law(x: np.ndarray, y: np.ndarray, *, floor: bool = True) -> PowerLaw:
    """Least squares of y = a * x^(-b) + c with a, b >= 0 and 0 <= c <= min(y).

    x, y: 1-D, positive; y falls with x. floor=False fixes c = 0. For a given b the rest is
    linear, so a scan over b with a refinement finds the global optimum and needs no start.
    Raises UserError for fewer points than parameters.
    """
    x, y = _positive(x, y, need=3 if floor else 2)
    scale = math.exp(np.log(x).mean())  # keeps x^(-b) near one, whatever the unit of x
    grid = np.geomspace(1e-4, 10.0, 400)
    errors = [_given_exponent(x / scale, y, b, floor)[0] for b in grid]
    best = int(np.argmin(errors))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    b = _golden_section(lambda b: _given_exponent(x / scale, y, b, floor)[0], low, high)
    _, a, c = _given_exponent(x / scale, y, b, floor)
    return PowerLaw(a * scale**b, b, c)


def _given_exponent(x: np.ndarray, y: np.ndarray, b: float, floor: bool) -> tuple[float, float, float]:
    """(squared error, a, c) of the best a and c for this b. Convex in c, so clipping c is exact."""
    p = x**-b
    c = 0.0
    if floor and (spread := float(((p - p.mean()) ** 2).sum())) > 0:
        slope = max(0.0, float((p - p.mean()) @ y) / spread)
        c = min(max(float(y.mean() - slope * p.mean()), 0.0), float(y.min()))
    a = max(0.0, float(p @ (y - c) / (p @ p)))
    return float(((a * p + c - y) ** 2).sum()), a, c


def _golden_section(f: Callable[[float], float], low: float, high: float) -> float:
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if f(left) < f(right) else (left, high)
    return (low + high) / 2


def fit_trend(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """y = a * x^(-b) by a line through (ln x, ln y); b may be negative. For LR*(tokens), LR*(batch)."""
    x, y = _positive(x, y, need=2)
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(math.exp(intercept), -float(slope))


@dataclass(frozen=True)
class Parabola:
    """loss = curvature * (ln(lr / best_lr))^2 + best_loss; r2: share of the variance explained."""

    best_lr: float
    best_loss: float
    curvature: float
    r2: float

    def __call__(self, lr: np.ndarray | float) -> np.ndarray:
        return self.curvature * np.log(np.asarray(lr) / self.best_lr) ** 2 + self.best_loss


def fit_best_lr(lr: np.ndarray, loss: np.ndarray) -> Parabola:
    """Least-squares parabola of the loss in ln(lr); its vertex is the best learning rate.

    Raises UserError for fewer than three learning rates, or when the loss has no minimum
    in ln(lr). A vertex outside the sweep is the caller's to judge.
    """
    lr, loss = _positive(lr, loss, need=3)
    middle = np.log(lr).mean()
    curvature, slope, level = (float(v) for v in np.polyfit(np.log(lr) - middle, loss, 2))
    if curvature <= 0:
        raise UserError(
            f"The losses {loss.tolist()} at learning rates {lr.tolist()} have no minimum. "
            f"Give a sweep with learning rates on both sides of the best one."
        )
    at = -slope / (2 * curvature)
    fit = Parabola(math.exp(middle + at), level - curvature * at * at, curvature, 0.0)
    spread = float(((loss - loss.mean()) ** 2).sum())
    r2 = 1 - float(((fit(lr) - loss) ** 2).sum()) / spread if spread else 1.0
    return Parabola(fit.best_lr, fit.best_loss, fit.curvature, r2)


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta, N parameters, D tokens (Hoffmann et al. 2022)."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    def __call__(self, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
        n, d = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
        return self.E + self.A * n**-self.alpha + self.B * d**-self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """(N, D) of the lowest loss at flops = 6 N D; Hoffmann et al. 2022, equation 4."""
        total = self.alpha + self.beta
        g = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        return g * (flops / 6) ** (self.beta / total), (flops / 6) ** (self.alpha / total) / g


# Hoffmann et al. 2203.15556 with the digits that the paper's table rounds away
HOFFMANN = Chinchilla(406.4015, 410.7229, 1.693372, 0.33917084, 0.2849083)
BESIROGLU = Chinchilla(482.01, 2085.43, 1.8169, 0.3478, 0.3659)  # 2404.10102, the replication


def fit_chinchilla(n: np.ndarray, d: np.ndarray, loss: np.ndarray, starts: int = 20) -> Chinchilla:
    """Approach 3: minimise the sum of Huber(1e-3) of ln(predicted) - ln(loss).

    n, d, loss: 1-D, one entry per run. The sum, not the mean: the mean makes optimizers stop
    early, which is how the replication explains Hoffmann's intervals. Of the papers' grid of
    4500 starting points the `starts` lowest are followed by BFGS with the exact gradient.
    Raises UserError for fewer than five runs, or without scipy.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as missing:
        raise UserError("The Chinchilla fit needs scipy. Type: pip install scipy") from missing
    n, loss = _positive(n, loss, need=5)
    d, _ = _positive(d, loss, need=5)
    data = np.log(n), np.log(d), np.log(loss)
    tens, halves = np.arange(0, 26, 5.0), np.arange(0, 2.01, 0.5)
    grid = np.array(list(product(tens, tens, np.arange(-1, 1.01, 0.5), halves, halves)))
    ranked = grid[np.argsort([_huber(point, *data)[0] for point in grid])[:starts]]
    options = {"gtol": 1e-10}  # gradients are of the size of HUBER_DELTA: the default 1e-5 stops early
    found = [minimize(_huber, start, data, method="BFGS", jac=True, options=options) for start in ranked]
    a, b, e, alpha, beta = min(found, key=lambda f: f.fun).x
    return Chinchilla(math.exp(a), math.exp(b), math.exp(e), float(alpha), float(beta))


def _huber(point: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray, ln_loss: np.ndarray) -> tuple[float, np.ndarray]:
    """Objective and gradient at point = (a, b, e, alpha, beta), logs of A, B and E."""
    a, b, e, alpha, beta = point
    terms = np.stack([a - alpha * ln_n, b - beta * ln_d, np.full_like(ln_n, e)])
    ln_sum = np.logaddexp.reduce(terms)
    share = np.exp(terms - ln_sum)
    residual = ln_sum - ln_loss
    clipped = np.clip(residual, -HUBER_DELTA, HUBER_DELTA)  # the derivative of the Huber function
    value = float((clipped * (residual - clipped / 2)).sum())
    slopes = np.stack([share[0], share[1], share[2], -share[0] * ln_n, -share[1] * ln_d])
    return value, slopes @ clipped


def leave_one_out(fit: Callable[..., Fit], *data: np.ndarray) -> list[Fit]:
    """The fit without each point in turn; how far one run decides the result."""
    return [fit(*(np.delete(column, i) for column in data)) for i in range(len(data[0]))]


def bootstrap(fit: Callable[..., Fit], *data: np.ndarray, samples: int, seed: int = 0) -> Iterator[Fit]:
    """The fit on resampled points, `samples` times; quantiles of its numbers are confidence intervals."""
    rng = np.random.default_rng(seed)
    for _ in range(samples):
        chosen = rng.integers(len(data[0]), size=len(data[0]))
        yield fit(*(column[chosen] for column in data))


def _positive(x: np.ndarray, y: np.ndarray, need: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    assert x.shape == y.shape and x.ndim == 1, (x.shape, y.shape)
    if not (np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)).all():
        raise UserError(f"A fit needs finite positive numbers, got x = {x.tolist()} and y = {y.tolist()}.")
    if len(np.unique(x)) < need:
        raise UserError(f"This fit needs {need} different x, got {sorted(set(x.tolist()))}. Add runs.")
    return x, y
