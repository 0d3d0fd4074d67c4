"""Compute leverage: how much more compute a baseline needs for the loss that a variant reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from lit_gpt.scaling.intervals import percentiles
from lit_gpt.scaling.law import Fitted
from lit_gpt.scaling.noise import LEVEL, student, welch

MANY = 1e4  # degrees of freedom, from which Student's t is the normal distribution


class Resampled(NamedTuple):
    """A law fitted to many sets of data with noise of one size, and the degrees of freedom that the size is from."""

    fits: Sequence[Fitted]
    freedom: float


@dataclass(frozen=True)
class Leverage:
    """The baseline's compute over the variant's, at equal loss, of the variant at some places; all are (places,).

    low, high: the interval; infinite where the baseline never gets there. tie: whether the interval of LEVEL holds 1.
    All but `value` are NaN, and tie true, where one of the laws has no intervals.
    """

    compute: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    tie: np.ndarray


def compute_leverage(
    base: Fitted, other: Fitted, compute: np.ndarray, draws: tuple[Resampled, Resampled] | None, level: float
) -> Leverage:
    """base, other: laws y = a x^-b + c. draws: of both, with noise that the other's has nothing to do with.

    Percentiles of the draws, whose distance from the value, in logarithms, is multiplied by Student's t over the same
    quantile of the normal distribution: the sizes of both noises are estimates, with as many degrees of freedom
    together as Welch (1947) gives them. To draw the sizes too, for each law alone, is too wide: intervals of 90% then
    hold the truth in 97% of cases where five runs make a law.
    """
    value = _leverage(base, other, compute)
    if draws is None:
        none = np.full_like(value, np.nan)
        return Leverage(compute, value, none, none, np.ones(len(value), dtype=bool))
    every = np.array([_leverage(one, two, compute) for one, two in zip(draws[0].fits, draws[1].fits)])
    first = _variances([_leverage(one, other, compute) for one in draws[0].fits])
    second = _variances([_leverage(base, two, compute) for two in draws[1].fits])
    sizes = draws[0].freedom, draws[1].freedom
    free = [min(sizes) if np.isnan(both).any() else welch(both, sizes) for both in zip(first, second)]
    low, high = _ends(value, every, free, level)
    least, most = _ends(value, every, free, LEVEL)
    return Leverage(compute, value, low, high, ~((least > 1) | (most < 1)))


def _leverage(base: Fitted, other: Fitted, compute: np.ndarray) -> np.ndarray:
    """Infinite at losses that the baseline never reaches, and NaN where it has no slope."""
    a, b, c = (base.numbers[name] for name in ("a", "b", "c"))
    above = other.numbers["a"] * compute ** -other.numbers["b"] + other.numbers["c"] - c
    if not b > 0 or not math.isfinite(a):
        return np.full(len(compute), np.nan)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(above > 0, (a / np.maximum(above, 0.0)) ** (1 / b) / compute, np.inf)


def _variances(values: Sequence[np.ndarray]) -> np.ndarray:
    """Of the logarithms at each place, of those that are numbers; NaN where there are fewer than two."""
    known = [np.log(column[np.isfinite(column) & (column > 0)]) for column in np.array(values).T]
    return np.array([float(some.var(ddof=1)) if len(some) > 1 else math.nan for some in known])


def _ends(value: np.ndarray, every: np.ndarray, free: Sequence[float], level: float) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) at each place."""
    found = np.array([_interval(column, level) for column in every.T])
    for i, freedom in enumerate(free):
        if np.isfinite(value[i]) and freedom < MANY:
            wider = student(freedom, level) / NormalDist().inv_cdf((1 + level) / 2)
            found[i] = value[i] * (found[i] / value[i]) ** wider
    return found[:, 0], found[:, 1]


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Percentiles of what is a number; an end among infinite ones is infinite."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = percentiles(np.arange(len(known), dtype=np.float64), level)
    ranked = np.sort(known)
    return float(ranked[math.floor(low)]), float(ranked[math.ceil(high)])
