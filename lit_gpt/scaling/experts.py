"""Joint laws of mixtures of experts over size, tokens and experts (arXiv:2502.05172) or granularity (arXiv:2402.07871).

Both are sums of products of powers, so sums.py fits them; both have published numbers to predict from without a fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import positive
from lit_gpt.scaling.sums import HUBER_DELTA, fit_sum, undetermined

FIRST, LAST = 2.0732, 290.4521  # E_start and E_max of arXiv:2502.05172, where more experts begin and cease to help
OPEN = "these runs leave the numbers open, as other laws fit as well: add runs with other {}"


@dataclass(frozen=True)
class Joint:
    """L = a F^delta N^(alpha + gamma ln F) + b F^omega D^(beta + zeta ln F) + c, here with F = helpful(experts).

    N active parameters, D tokens, experts = all of them over those a token uses, 1 for a dense model.
    notes: what a fit has to say about these numbers.
    """

    a: float
    alpha: float
    delta: float
    gamma: float
    b: float
    beta: float
    omega: float
    zeta: float
    c: float
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, n: np.ndarray | float, d: np.ndarray | float, experts: np.ndarray | float) -> np.ndarray:
        ln_e = np.log(helpful(experts))
        size = self.a * np.exp(self.delta * ln_e) * np.asarray(n, float) ** (self.alpha + self.gamma * ln_e)
        data = self.b * np.exp(self.omega * ln_e) * np.asarray(d, float) ** (self.beta + self.zeta * ln_e)
        return size + data + self.c

    def optimum(self, flops: float, experts: float) -> tuple[float, float]:
        """(N, D) of the lowest loss at flops = 6 N D. Raises UserError where the loss does not fall with both."""
        ln_e = float(np.log(helpful(experts)))
        fall_n, fall_d = -(self.alpha + self.gamma * ln_e), -(self.beta + self.zeta * ln_e)
        if min(fall_n, fall_d) <= 0:
            raise UserError(f"With {experts:g} times as many experts this law does not fall with size and tokens.")
        m, n = self.a * math.exp(self.delta * ln_e), self.b * math.exp(self.omega * ln_e)
        size = (fall_n * m / (fall_d * n)) ** (1 / (fall_n + fall_d)) * (flops / 6) ** (fall_d / (fall_n + fall_d))
        return size, flops / 6 / size


# arXiv:2502.05172, by a secondary source of its numbers
LUDZIEJEWSKI = Joint(35.91, -0.1889, -0.2285, 0.0098, 35.98, -0.1775, 0.5529, -0.0259, 1.3637)


def helpful(experts: np.ndarray | float) -> np.ndarray:
    """F: 1/F = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max."""
    within = np.asarray(experts, dtype=np.float64) - 1 + 1 / (1 / FIRST - 1 / LAST)
    return 1 / (1 / within + 1 / LAST)


def fit_joint(n: np.ndarray, d: np.ndarray, experts: np.ndarray, loss: np.ndarray) -> Joint:
    """The nine numbers by Huber(0.01) of ln(predicted) - ln(loss), as the paper. E_start and E_max are published ones.

    Raises UserError for fewer runs than numbers, or fewer than two different N, D or experts.
    """
    n, d, experts, loss = positive(2, N=n, D=d, experts=experts, loss=loss)
    (mid_n, u), (mid_d, v), (mid_e, w) = (_centred(x) for x in (n, d, helpful(experts)))
    one, none = np.ones_like(u), np.zeros((len(u), 4))
    size, data = np.stack([one, u, w, u * w], 1), np.stack([one, v, w, v * w], 1)
    floor = np.concatenate([none, none, one[:, None]], 1)
    terms = np.stack([np.c_[size, none, 0 * one], np.c_[none, data, 0 * one], floor])
    level = float(np.log(loss).mean())
    grid = [
        (*(level + math.log(x), -p, q, 0.0), *(level + math.log(y), -r, s, 0.0), level + math.log(1 - x - y))
        for x, y in ((0.2, 0.2), (0.1, 0.3), (0.3, 0.1), (0.4, 0.4))
        for p in (0.1, 0.3, 0.6)
        for r in (0.1, 0.3, 0.6)
        for q, s in ((-0.2, 0.0), (0.0, 0.2), (-0.2, 0.5))
    ]
    point = fit_sum(terms, np.log(loss), np.array(grid), HUBER_DELTA)
    notes = (OPEN.format("N, D and experts"),) if undetermined(terms, point) else ()
    return Joint(*_uncentred(point[:4], mid_n, mid_e), *_uncentred(point[4:8], mid_d, mid_e), math.exp(point[8]), notes)


def _centred(x: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean logarithm, and the logarithms less that: a fit in them does not depend on units."""
    return float(np.log(x).mean()), np.log(x) - float(np.log(x).mean())


def _uncentred(point: np.ndarray, mid_x: float, mid_e: float) -> tuple[float, float, float, float]:
    """Factor, exponent, exponent of F and exponent of both, from p0 + p1 u + p2 w + p3 u w."""
    p0, p1, p2, p3 = (float(v) for v in point)
    ln_a = p0 - p1 * mid_x - p2 * mid_e + p3 * mid_x * mid_e
    return math.exp(ln_a), p1 - p3 * mid_e, p2 - p3 * mid_x, p3


@dataclass(frozen=True)
class Granular:
    """L = c + (g / G^gamma + a) / N^alpha + b / D^beta; G: how many small experts one of usual size was cut into."""

    a: float
    alpha: float
    b: float
    beta: float
    g: float
    gamma: float
    c: float
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, n: np.ndarray | float, d: np.ndarray | float, granularity: np.ndarray | float) -> np.ndarray:
        fine = self.g * np.asarray(granularity, float) ** -self.gamma + self.a
        return self.c + fine * np.asarray(n, float) ** -self.alpha + self.b * np.asarray(d, float) ** -self.beta


# arXiv:2402.07871, for 64 times as many experts as a token uses, by a secondary source of its numbers
KRAJEWSKI = Granular(18.1, 0.115, 30.8, 0.147, 2.1, 0.58, 0.47)


def fit_granular(n: np.ndarray, d: np.ndarray, granularity: np.ndarray, loss: np.ndarray) -> Granular:
    """The seven numbers by Huber(0.01) of ln(predicted) - ln(loss), for one ratio of all experts to those in use.

    Raises UserError for fewer runs than numbers, fewer than three different G, or two different N or D.
    """
    n, d, granularity, loss = positive(2, N=n, D=d, G=granularity, loss=loss)
    if len(np.unique(granularity)) < 3:
        raise UserError(f"This fit needs 3 different G, got {sorted(set(granularity.tolist()))}. Add runs.")
    (mid_n, u), (mid_d, v), (mid_g, w) = (_centred(x) for x in (n, d, granularity))
    one, zero = np.ones_like(u), np.zeros_like(u)
    columns = (  # numbers: a, alpha, b, beta, g, gamma, c
        (one, -u, zero, zero, zero, zero, zero),
        (zero, -u, zero, zero, one, -w, zero),
        (zero, zero, one, -v, zero, zero, zero),
        (zero, zero, zero, zero, zero, zero, one),
    )
    terms, level = np.stack([np.stack(column, 1) for column in columns]), float(np.log(loss).mean())
    grid = [
        (*(level + math.log(x), p), *(level + math.log(y), r), *(level + math.log(x / 10), s), level - 0.5)
        for x, y in ((0.2, 0.2), (0.1, 0.3), (0.4, 0.4))
        for p in (0.1, 0.3, 0.6)
        for r in (0.1, 0.3, 0.6)
        for s in (0.3, 0.6, 1.2)
    ]
    point = fit_sum(terms, np.log(loss), np.array(grid), HUBER_DELTA)
    a, alpha, b, beta, g, gamma, c = (float(x) for x in point)
    a, b, g = a + alpha * mid_n, b + beta * mid_d, g + alpha * mid_n + gamma * mid_g
    notes = (OPEN.format("N, D and G"),) if undetermined(terms, point) else ()
    return Granular(math.exp(a), alpha, math.exp(b), beta, math.exp(g), gamma, math.exp(c), notes)
