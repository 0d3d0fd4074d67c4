"""Joint laws of mixtures of experts over size, tokens and experts (arXiv:2502.05172) or granularity (arXiv:2402.07871).

Both are sums of products of powers, so sums.py fits them; both have published numbers to predict from without a fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import positive
from lit_gpt.scaling.sums import Problem, centred_logs, exp

FIRST, LAST = 2.0732, 290.4521  # E_start and E_max of arXiv:2502.05172, where more experts begin and cease to help


@dataclass(frozen=True)
class Joint:
    """L = a F^delta N^(alpha + gamma ln F) + b F^omega D^(beta + zeta ln F) + c, here with F = helpful(experts).

    N active parameters, D tokens, experts = all of them over those a token uses, 1 for a dense model.
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


def joint_problem(n: np.ndarray, d: np.ndarray, experts: np.ndarray) -> Problem[Joint]:
    """The nine numbers, for Huber's fit as in the paper; E_start and E_max are the published ones.

    Raises UserError for fewer than two different N, D or experts.
    """
    n, d, experts, _ = positive(2, N=n, D=d, experts=experts, loss=np.ones_like(n))
    (mid_n, u), (mid_d, v), (mid_e, w) = (centred_logs(x) for x in (n, d, helpful(experts)))
    one, none = np.ones_like(u), np.zeros((len(u), 4))
    size, data = np.stack([one, u, w, u * w], 1), np.stack([one, v, w, v * w], 1)
    terms = np.stack([np.c_[size, none, 0 * one], np.c_[none, data, 0 * one], np.c_[none, none, one]])
    starts = [
        (math.log(x), -p, q, 0.0, math.log(y), -r, s, 0.0, math.log(1 - x - y))
        for x, y in ((0.2, 0.2), (0.1, 0.3), (0.3, 0.1), (0.4, 0.4))
        for p in (0.1, 0.3, 0.6)
        for r in (0.1, 0.3, 0.6)
        for q, s in ((-0.2, 0.0), (0.0, 0.2), (-0.2, 0.5))
    ]

    def read(point: np.ndarray) -> Joint:
        return Joint(*_uncentred(point[:4], mid_n, mid_e), *_uncentred(point[4:8], mid_d, mid_e), exp(point[8]))

    return Problem(terms, np.array(starts), np.array([1, 0, 0, 0, 1, 0, 0, 0, 1]), read, np.ones(9, dtype=bool))


def _uncentred(point: np.ndarray, mid_x: float, mid_e: float) -> tuple[float, float, float, float]:
    """Factor, exponent, exponent of F and exponent of both, from p0 + p1 u + p2 w + p3 u w."""
    p0, p1, p2, p3 = (float(v) for v in point)
    ln_a = p0 - p1 * mid_x - p2 * mid_e + p3 * mid_x * mid_e
    return exp(ln_a), p1 - p3 * mid_e, p2 - p3 * mid_x, p3


@dataclass(frozen=True)
class Granular:
    """L = c + (g / G^gamma + a) / N^alpha + b / D^beta; G: how many small experts one of usual size was cut into.

    N counts all experts, not those in use: so only does the paper's table of optima follow from its numbers.
    """

    a: float
    alpha: float
    b: float
    beta: float
    g: float
    gamma: float
    c: float

    def __call__(self, n: np.ndarray | float, d: np.ndarray | float, granularity: np.ndarray | float) -> np.ndarray:
        fine = self.g * np.asarray(granularity, float) ** -self.gamma + self.a
        return self.c + fine * np.asarray(n, float) ** -self.alpha + self.b * np.asarray(d, float) ** -self.beta


# arXiv:2402.07871, for 64 times as many experts as a token uses, by a secondary source of its numbers
KRAJEWSKI = Granular(18.1, 0.115, 30.8, 0.147, 2.1, 0.58, 0.47)


def granular_problem(n: np.ndarray, d: np.ndarray, granularity: np.ndarray) -> Problem[Granular]:
    """The seven numbers, for Huber's fit, of runs with one ratio of all experts to those in use.

    Raises UserError for fewer than three different G, or two different N or D.
    """
    n, d, granularity, _ = positive(2, N=n, D=d, G=granularity, loss=np.ones_like(n))
    if len(np.unique(granularity)) < 3:
        raise UserError(f"This fit needs 3 different G, got {sorted(set(granularity.tolist()))}. Add runs.")
    (mid_n, u), (mid_d, v), (mid_g, w) = (centred_logs(x) for x in (n, d, granularity))
    one, zero = np.ones_like(u), np.zeros_like(u)
    columns = (  # numbers: a, alpha, b, beta, g, gamma, c
        (one, -u, zero, zero, zero, zero, zero),
        (zero, -u, zero, zero, one, -w, zero),
        (zero, zero, one, -v, zero, zero, zero),
        (zero, zero, zero, zero, zero, zero, one),
    )
    starts = [
        (math.log(x), p, math.log(y), r, math.log(x / 10), s, -0.5)
        for x, y in ((0.2, 0.2), (0.1, 0.3), (0.4, 0.4))
        for p in (0.1, 0.3, 0.6)
        for r in (0.1, 0.3, 0.6)
        for s in (0.3, 0.6, 1.2)
    ]

    def read(point: np.ndarray) -> Granular:
        a, alpha, b, beta, g, gamma, c = (float(x) for x in point)
        small = g + alpha * mid_n + gamma * mid_g
        return Granular(exp(a + alpha * mid_n), alpha, exp(b + beta * mid_d), beta, exp(small), gamma, exp(c))

    terms = np.stack([np.stack(column, 1) for column in columns])
    return Problem(terms, np.array(starts), np.array([1, 0, 1, 0, 1, 0, 1]), read, np.ones(7, dtype=bool))
