"""pass@k, and how sure it is: the mean over questions with an interval.

An interval is over questions, since another set of as hard questions is what a score is meant to say something about.
It is Wilson's (doi:10.1080/01621459.1927.10502953), which stays inside 0 and 1, and has a width where every answer was
right or none was; a bootstrap of the questions has none there, and is too narrow for the 30 questions of AIME. Values
between 0 and 1, of several generations, vary less than right and wrong do, so they count as more questions: as many as
right and wrong ones would need for the same variance (the effective sample size of surveys, after Kish).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Estimate:
    """A mean over questions, and the ends of its interval, all within 0 and 1."""

    value: float
    low: float
    high: float


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that one of k generations is right, drawn from n without return, of which `right` are right.

    Unbiased: arXiv:2107.03374, equation 1.
    """
    assert 0 <= right <= n and 1 <= k <= n, (n, right, k)
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> Estimate:
    """pass@k over questions. counts: (generations, right ones) of each question; at least k generations."""
    groups = min(n for n, _ in counts) / k  # of k generations, which do not share any
    return interval([pass_at_k(n, right, k) for n, right in counts], most=len(counts) * groups)


def interval(values: Sequence[float], most: float | None = None) -> Estimate:
    """The mean of values from 0 to 1, and its interval. most: how many questions they count as, at the most."""
    mean, count = fmean(values), float(len(values))
    spread = variance(values) if len(values) > 1 else 0.0
    if any(0 < value < 1 for value in values):
        alike = mean * (1 - mean) / spread * count if spread else math.inf
        count = max(count, min(alike, count if most is None else most))
    middle = (mean + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(mean * (1 - mean) / count + (Z / (2 * count)) ** 2)
    return Estimate(mean, max(0.0, middle - half), min(1.0, middle + half))


def sizes(most: int) -> list[int]:
    """The k to report for `most` generations: powers of two, and `most`."""
    return sorted({2**i for i in range(most.bit_length())} | {most})
