"""Curves of one quantity: power laws, with offset and without.

A fit also says in words (`notes`) what its numbers cannot: data that do not follow the law, a run that stands apart,
a parameter that the data leave open. A number that is not determined is NaN, never the end of a range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import check_offset, outliers, positive, untested

EXPONENTS = np.geomspace(1e-4, 10.0, 400)  # of power laws

Least = tuple[np.ndarray, np.ndarray, np.ndarray]  # squared errors, and the a and c that have them


@dataclass(frozen=True)
class PowerLaw:
    """y = a * x^(-b) + c. notes: what a fit has to say about these numbers."""

    a: float
    b: float
    c: float = 0.0
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, x: np.ndarray | float) -> np.ndarray:
        return self.a * np.asarray(x, dtype=np.float64) ** -self.b + self.c

    def inverse(self, y: float) -> float:
        """The x that reaches y; infinite at or below c, and for b = 0. Two fits' ratio is compute leverage."""
        return (self.a / (y - self.c)) ** (1 / self.b) if y > self.c and self.b else math.inf


def fit_power_law(x: np.ndarray, y: np.ndarray, *, offset: float | None = None) -> PowerLaw:
    """Least squares of y = a * x^(-b) + c with a, b >= 0 and 0 <= c <= min(y).

    x, y: 1-D, positive; y falls with x. offset: c where it is known, such as 0. For a given b the rest is
    linear, so a scan over b with a refinement finds the global optimum and needs no start.
    Where y does not fall, the law is flat: b = 0 and a is the mean. Where b is beyond EXPONENTS, all numbers are NaN.
    Either is in `notes`, and so are an outlier and an offset of 0 that was found. Raises UserError for fewer points
    than parameters, and for an offset that some y are not above.
    """
    parameters = 3 if offset is None else 2
    x, y = positive(parameters, x=x, y=y)
    (ln_x, u), (ln_y, v), pinned = *_above(x, y, offset), offset is not None
    b, error, a, c, best = (values[0] for values in _search(u, v[None], np.ones((1, len(x))), pinned))
    without = _scan(u, v, EXPONENTS[::4], 1.0 - np.eye(len(x)), pinned)[0].min(1)
    mean_alone = float(((v - v.mean()) ** 2).sum())
    apart = outliers({"x": x, "y": y}, min(error, mean_alone), without, parameters)
    if mean_alone <= error:
        flat = "y does not fall with x, so there is no power law: this is its mean"
        return PowerLaw(float(y.mean()), 0.0, 0.0, (flat, *apart))
    notes = (*untested(error, v, parameters), *apart)
    if best in (0, len(EXPONENTS) - 1):
        return PowerLaw(math.nan, math.nan, math.nan, (_beyond(int(best)), *notes))
    if not pinned and c == 0.0:
        notes = ("the offset c is at its bound 0: the data do not show where the fall ends", *notes)
    return PowerLaw(_exp(math.log(a) + ln_y + b * ln_x), float(b), float(offset or c * math.exp(ln_y)), notes)


def power_laws(x: np.ndarray, y: np.ndarray, counts: np.ndarray, *, offset: float | None = None) -> list[PowerLaw]:
    """fit_power_law of many sets of points over the same x, without notes: a hundredth of the time.

    x: (n,). y, counts: (samples, n), the counts say how often each point is in a set. A set without two (with a free
    offset: three) different x, or whose law is not determined, has NaN.
    """
    pinned, low = offset is not None, offset or 0.0
    reached = y.min(1) <= low
    (ln_x, u), (ln_y, v) = _centred(x), _centred(np.where(reached[:, None], 1.0, y - low))
    found: list[PowerLaw] = []
    for rows in np.array_split(np.arange(len(v)), -(-len(v) * len(x) // 2000)):  # what fits into the cache
        b, error, a, c, best = _search(u, v[rows], counts[rows], pinned, EXPONENTS[::4])
        mean = (counts[rows] * v[rows]).sum(1) / counts[rows].sum(1)
        flat = (counts[rows] * (v[rows] - mean[:, None]) ** 2).sum(1) <= error
        none = reached[rows] | ~flat & ((best == 0) | (best == len(EXPONENTS[::4]) - 1))
        none |= np.array([len(np.unique(x[row > 0])) for row in counts[rows]]) < (2 if pinned else 3)
        ln_a = np.log(np.where(a > 0, a, np.nan)) + ln_y + b * ln_x
        none |= ~flat & ~(np.abs(ln_a) < 700)
        a = np.where(flat, mean * math.exp(ln_y) + low, np.exp(np.where(none | flat, 0.0, ln_a)))
        c = np.where(flat, 0.0, low if pinned else c * math.exp(ln_y))
        numbers = np.where(none, np.nan, [a, np.where(flat, 0.0, b), c])
        found += [PowerLaw(float(a), float(b), float(c)) for a, b, c in numbers.T]
    return found


def _above(x: np.ndarray, y: np.ndarray, offset: float | None) -> tuple[tuple[float, np.ndarray], ...]:
    """x, and y above a known offset, centred. Raises UserError where y is not above it."""
    check_offset(offset, y, "y")
    return _centred(x), _centred(y - (offset or 0.0))


def _centred(values: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean logarithm, and the values in its unit: their powers stay near one, whatever their own unit."""
    middle = float(np.log(values).mean())
    return middle, values / math.exp(middle)


def _exp(value: float) -> float:
    """e to the value. Raises UserError where that is no number."""
    if abs(value) > 700:  # exp overflows at 709.8, and is less exact below -708.4
        raise UserError(f"The law's factor is e^{value:.0f}, too large or small for a float. Give x in another unit.")
    return math.exp(value)


def _beyond(best: int) -> str:
    if best == 0:
        return f"y hardly falls (b below {EXPONENTS[0]:g}), so a, b and c cannot be told apart: add runs further apart"
    return f"y reaches its floor at once (b above {EXPONENTS[-1]:g}), so b cannot be told: add runs at smaller x"


def _search(
    x: np.ndarray, y: np.ndarray, w: np.ndarray, pinned: bool, exponents: np.ndarray = EXPONENTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each of `samples` sets the best exponent b, its squared error, a, c, and its place among the exponents.

    x: (n,). y, w: (samples, n), w is how often each point counts. pinned: c is 0.
    """
    best = np.argmin(_scan(x, y, exponents, w, pinned)[0], -1)
    low, high = exponents[np.maximum(best - 1, 0)], exponents[np.minimum(best + 1, len(exponents) - 1)]
    b = _golden_section(lambda b: _given_exponent(x**-b, y, w, pinned)[0], low[:, None], high[:, None])
    return b[:, 0], *_given_exponent(x**-b, y, w, pinned), best


def _scan(x: np.ndarray, y: np.ndarray, b: np.ndarray, w: np.ndarray, pinned: bool) -> Least:
    """_given_exponent of each set and exponent, (samples, exponents)."""
    return _given_exponent(x ** -b[:, None], y[..., None, :], w[:, None, :], pinned)


def _given_exponent(p: np.ndarray, y: np.ndarray, w: np.ndarray, pinned: bool) -> Least:
    """(squared error, a, c) of the best a and c for p = x^-b, over the last axis. Convex in c, so clipping is exact."""
    count = w.sum(-1)
    c = np.zeros(np.broadcast_shapes(p.shape, y.shape, w.shape)[:-1])
    if not pinned:
        p_mean, y_mean = (w * p).sum(-1) / count, (w * y).sum(-1) / count
        deviation = p - p_mean[..., None]
        spread = (w * deviation**2).sum(-1)
        slope = np.maximum((w * deviation * y).sum(-1) / np.where(spread > 0, spread, 1.0), 0.0)
        least = np.where(w > 0, y, np.inf).min(-1)
        c = np.where(spread > 0, np.clip(y_mean - slope * p_mean, 0.0, least), 0.0)
    a = np.maximum((w * p * (y - c[..., None])).sum(-1) / (w * p**2).sum(-1), 0.0)
    return (w * (a[..., None] * p + c[..., None] - y) ** 2).sum(-1), a, c


def _golden_section(f: Callable[[np.ndarray], np.ndarray], low: np.ndarray, high: np.ndarray) -> np.ndarray:
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(80):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        lower = (f(left) < f(right))[:, None]
        low, high = np.where(lower, low, left), np.where(lower, right, high)
    return (low + high) / 2


def fit_trend(x: np.ndarray, y: np.ndarray) -> PowerLaw:
    """y = a * x^(-b) by a line through (ln x, ln y); b may be negative. For LR*(tokens), LR*(batch)."""
    x, y = positive(2, x=x, y=y)
    slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(_exp(intercept), -float(slope), 0.0, _notes_of_a_line(x, y))


def _notes_of_a_line(x: np.ndarray, y: np.ndarray) -> tuple[str, ...]:
    """Of least squares through logarithms; squared errors without each point follow from its leverage."""
    explained = np.log(y)
    q, _ = np.linalg.qr(np.vander(np.log(x) - np.log(x).mean(), 2))
    residual = explained - q @ (q.T @ explained)
    room = np.maximum(1 - (q**2).sum(1), 1e-12)  # 1 - leverage; 0 where the point is alone in saying something
    error = float((residual**2).sum())
    without = np.maximum(error - residual**2 / room, 0.0)
    return (*untested(error, explained, 2), *outliers({"x": x, "y": y}, error, without, 2))
