"""Compute leverage: how much more compute a baseline needs for the loss that a variant reaches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_gpt.scaling.intervals import percentiles
from lit_gpt.scaling.law import Fitted

DECIDES = 2.0  # standard errors of ln(leverage), whose draws know how few residuals say the noise


@dataclass(frozen=True)
class Leverage:
    """The baseline's compute over the variant's, at equal loss, of the variant at some places; all are (places,).

    low, high: the interval; infinite where the baseline never gets there. tie: whether ln(leverage) is less than two
    standard errors from 0. All but `value` are NaN, and tie true, where one of the laws has no intervals.
    """

    compute: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    tie: np.ndarray


def compute_leverage(
    base: Fitted,
    other: Fitted,
    compute: np.ndarray,
    draws: tuple[Sequence[Fitted], Sequence[Fitted]] | None,
    level: float,
) -> Leverage:
    """base, other: laws y = a x^-b + c. draws: resamples of both.

    Both may come from one seed, so that the i-th ones have the same noise: they are paired in another order.
    """
    value = _leverage(base, other, compute)
    if draws is None:
        none = np.full_like(value, np.nan)
        return Leverage(compute, value, none, none, np.ones(len(value), dtype=bool))
    apart = [draws[1][i] for i in np.random.default_rng(0).permutation(len(draws[1]))]
    every = np.array([_leverage(one, two, compute) for one, two in zip(draws[0], apart)])
    low, high = np.array([_interval(column, level) for column in every.T]).T
    return Leverage(compute, value, low, high, np.array([_is_tie(v, column) for v, column in zip(value, every.T)]))


def _leverage(base: Fitted, other: Fitted, compute: np.ndarray) -> np.ndarray:
    """Infinite at losses that the baseline never reaches, and NaN where it has no slope."""
    a, b, c = (base.numbers[name] for name in ("a", "b", "c"))
    above = other.numbers["a"] * compute ** -other.numbers["b"] + other.numbers["c"] - c
    if not b > 0 or not math.isfinite(a):
        return np.full(len(compute), np.nan)
    with np.errstate(divide="ignore", over="ignore"):
        return np.where(above > 0, (a / np.maximum(above, 0.0)) ** (1 / b) / compute, np.inf)


def _interval(values: np.ndarray, level: float) -> tuple[float, float]:
    """Percentiles of what is a number; an end among infinite ones is infinite."""
    known = values[~np.isnan(values)]
    if not len(known):
        return math.nan, math.nan
    low, high = percentiles(np.arange(len(known), dtype=np.float64), level)
    ranked = np.sort(known)
    return float(ranked[math.floor(low)]), float(ranked[math.ceil(high)])


def _is_tie(value: float, values: np.ndarray) -> bool:
    known = np.log(values[np.isfinite(values) & (values > 0)])
    if len(known) < 2 or not math.isfinite(value):
        return not len(known) < len(values) / 2  # a baseline that mostly never gets there is behind
    return abs(math.log(value)) < DECIDES * float(known.std(ddof=1))
