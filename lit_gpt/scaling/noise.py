"""Noise as a number: how much runs that should be the same differ, and whether two means differ by more.

Noise is a standard deviation with its degrees of freedom: a handful of runs does not know it well, which Student's t
takes into account. A difference whose 95% interval holds 0 is a tie. (Two standard errors would not do: of two sides of
two seeds that are the same, noise alone differs by more in 18% of cases, and of two pairs in 30%.)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
NORMAL = 1e8  # degrees of freedom, such as the infinite ones of a known error, from which t is normal to 8 digits


@dataclass(frozen=True)
class Noise:
    """A standard deviation of single runs, and its degrees of freedom; NaN and 0 where no run was repeated."""

    deviation: float
    free: int

    def error(self, *counts: int) -> float:
        """The standard error of a mean of so many runs, and of a difference of such means."""
        return self.deviation * math.sqrt(sum(1 / count for count in counts))


UNKNOWN = Noise(math.nan, 0)


@dataclass(frozen=True)
class Difference:
    """How much larger a second mean is than a first one.

    error: its standard error, NaN where nothing says it. free: degrees of freedom of that.
    """

    value: float
    error: float
    free: float

    @property
    def is_known(self) -> bool:
        """Whether there is any noise to compare it with."""
        return self.free > 0 and math.isfinite(self.error)

    @property
    def is_tie(self) -> bool:
        """Whether its interval holds 0; also where that is not known."""
        return self.ties()

    def ties(self, among: int = 1) -> bool:
        """The same, of one of so many differences, all of whose intervals together hold the truth (Bonferroni)."""
        return not self.is_known or abs(self.value) <= self.half(1 - (1 - LEVEL) / among)

    @property
    def errors(self) -> float:
        """Its size in standard errors."""
        return abs(self.value) / self.error if self.error else math.inf if self.value else 0.0

    @property
    def chance(self) -> float:
        """How often noise alone makes a difference of this size or more: the two-sided p-value of the t-test."""
        return 2 * student_tail(self.errors, self.free) if self.is_known else math.nan

    def half(self, level: float = LEVEL) -> float:
        """Half of its interval."""
        return student(self.free, level) * self.error if self.is_known else math.nan

    def in_words(self, digits: int = 4) -> str:
        """The difference, its interval, and what it decides."""
        if not self.is_known:
            return f"{self.value:+.{digits}f}; no run was repeated, so nothing says whether that is noise"
        verdict = "a tie" if self.is_tie else "more than noise"
        return (
            f"{self.value:+.{digits}f} +- {self.half():.{digits}f} ({LEVEL:.0%}), {self.errors:.1f} standard errors "
            f"of {self.error:.2g} with {degrees(self.free)}: {verdict}"
        )


def degrees(free: float) -> str:
    """Degrees of freedom in words."""
    return f"{free:.3g} degree{'s' * (free != 1)} of freedom"


def pooled(groups: Iterable[Sequence[float]]) -> Noise:
    """The noise within groups of repeated runs, which they share; groups of one run say nothing."""
    repeated = [group for group in groups if len(group) > 1]
    free = sum(len(group) - 1 for group in repeated)
    if not free:
        return UNKNOWN
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in repeated)
    return Noise(math.sqrt(squares / free), free)


def difference(a: Sequence[float], b: Sequence[float], noise: Noise | None = None) -> Difference:
    """How much more the mean of b is than that of a.

    noise: of single runs, known from elsewhere; else it is that within a and within b, which need not be the same.
    """
    value = statistics.fmean(b) - statistics.fmean(a)
    if noise is not None:
        return Difference(value, noise.error(len(a), len(b)), noise.free)
    if len(a) < 2 or len(b) < 2:  # one side says it for both
        shared = pooled([a, b])
        return Difference(value, shared.error(len(a), len(b)), shared.free)
    parts = [statistics.variance(side) / len(side) for side in (a, b)]
    return Difference(value, math.sqrt(sum(parts)), welch(parts, [len(a) - 1, len(b) - 1]))


def welch(variances: Sequence[float], free: Sequence[float]) -> float:
    """Degrees of freedom of a sum of variances that are estimates (Welch, Biometrika 34 (1947), 28-35).

    free: of each; infinite for one that is known.
    """
    squares = sum(variance**2 / each for variance, each in zip(variances, free))
    return sum(variances) ** 2 / squares if squares else sum(free)


def paired(a: Mapping[Any, float], b: Mapping[Any, float]) -> Difference:
    """The same of runs that share something, such as a seed, by which they are named: from the spread of the pairs."""
    gaps = [b[key] - a[key] for key in a if key in b]
    assert gaps, "no pairs"
    return mean(gaps)


@dataclass(frozen=True)
class Blocks:
    """Least squares of value = treatment + block + noise. noise: of a run beside the others of its block.

    treatments: their names, the first columns of the design. cover: (design^T design)^-1. fitted: the coefficients.
    """

    treatments: list[Any]
    design: np.ndarray
    cover: np.ndarray
    fitted: np.ndarray
    noise: Noise

    def means(self) -> list[float] | None:
        """The mean of each treatment over all blocks; None where no chain of shared blocks joins some of them."""
        count = len(self.treatments)
        joined = len(self.design) - self.noise.free == self.design.shape[1] - 1  # the rank of such a design
        return (self.fitted[:count] + self.fitted[count:].mean()).tolist() if joined else None

    def between(self, control: Hashable, name: Hashable) -> Difference:
        """How much more a treatment is than the control; NaN where no chain of shared blocks joins them."""
        return self.weighted([(name, 1.0), (control, -1.0)])

    def weighted(self, terms: Iterable[tuple[Hashable, float]]) -> Difference:
        """The sum of (treatment, weight), whose weights sum to 0; NaN where the blocks leave it open."""
        contrast = np.zeros(self.design.shape[1])
        for name, weight in terms:
            contrast[self.treatments.index(name)] += weight
        rounding = 1e-8 * float(np.abs(contrast).max())
        if not np.allclose(contrast @ self.cover @ (self.design.T @ self.design), contrast, atol=rounding):
            return Difference(math.nan, math.nan, 0)
        error = math.sqrt(max(contrast @ self.cover @ contrast, 0.0)) * self.noise.deviation
        return Difference(float(contrast @ self.fitted), error, self.noise.free)


def fit_blocks(values: Mapping[tuple[Any, ...], float]) -> Blocks:
    """Of runs that share something, such as a seed: a block. values: (treatment, block) -> value; some may be missing.

    A key may have more, which tells runs of one treatment in one block apart.

    What a block does to all its runs is no noise (randomised blocks: Fisher, The Design of Experiments, 1935, ch. 4).
    """
    treatments, blocks = (list(dict.fromkeys(key[i] for key in values)) for i in (0, 1))
    of_treatment, of_block = (np.array([[key[i] == name for name in names] for key in values], float)
                              for i, names in enumerate((treatments, blocks)))  # fmt: skip
    design, found = np.hstack([of_treatment, of_block]), np.array(list(values.values()))
    cover = np.linalg.pinv(design.T @ design)
    fitted, free = cover @ design.T @ found, len(found) - int(np.linalg.matrix_rank(design))
    squares = float(((found - design @ fitted) ** 2).sum())
    return Blocks(treatments, design, cover, fitted, Noise(math.sqrt(squares / free), free) if free else UNKNOWN)


def in_blocks(values: Mapping[tuple[Any, ...], float], control: str) -> dict[Any, Difference]:
    """How much more each treatment is than the control; see `fit_blocks` and `Blocks.between`."""
    fit = fit_blocks(values)
    return {name: fit.between(control, name) for name in fit.treatments}


def mean(values: Sequence[float]) -> Difference:
    """The mean of differences, as a difference from zero."""
    noise = pooled([values])
    return Difference(statistics.fmean(values), noise.error(len(values)), noise.free)


@lru_cache(1024)
def student(free: float, level: float = LEVEL) -> float:
    """How many standard errors hold the truth in a share `level` of cases: a two-sided quantile of Student's t.

    By Newton's method from the normal distribution's, which is below it. The density falls, so each step ends below
    the quantile, too, and the next one is smaller, until rounding is all that is left.
    """
    above = (1 - level) / 2
    t, step = -NormalDist().inv_cdf(above), math.inf
    if free > NORMAL:
        return t
    log = math.lgamma((free + 1) / 2) - math.lgamma(free / 2) - math.log(free * math.pi) / 2
    while step > 1e-14 * t:
        step = (student_tail(t, free) - above) * math.exp((free + 1) / 2 * math.log1p(t * t / free) - log)
        t += step
    return t


def student_tail(t: float, free: float) -> float:
    """The share of Student's t above t, which is at least 0. Source: Abramowitz and Stegun, Handbook (1964), 26.7.1."""
    return NormalDist().cdf(-t) if free > NORMAL else 0.5 * incomplete_beta(free / 2, 0.5, free / (free + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function. Source: as above, 26.5.8, and 26.5.2 where that converges faster."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    fraction = 1.0
    for n in range(100 + 5 * math.isqrt(int(a + b)), 0, -1):  # it needs about the root of a + b terms
        m = n // 2
        top = -(a + m) * (a + b + m) if n % 2 else m * (b - m)
        fraction = 1 + top / ((a + n - 1) * (a + n)) * x / fraction
    log = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log) / a / fraction
