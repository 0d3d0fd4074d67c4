"""Fits of scaling curves: power laws, the best learning rate of a sweep, and Chinchilla's approach 3.

A fit also says in words (`notes`) what its numbers cannot: data that do not follow the law, a run that stands apart,
a parameter that the data leave open. A number that is not determined is NaN, never the end of a range.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Generic, TypeVar

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import ROUNDING, outliers, positive, untested

Fit = TypeVar("Fit")
EXPONENTS = np.geomspace(1e-4, 10.0, 400)  # of power laws
HUBER_DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3
DEPENDENT = 1e-6  # smallest singular value of unit vectors that depend on each other
FAR_OUT = 10.0  # widths of a sweep from its middle, beyond which the vertex of a parabola is that of a line
FAR = 6.0  # robust standard deviations (1.4826 median |residual|) from which a run is far from Chinchilla's law
STEEP = 2.0  # the largest exponent among the papers' starting points
NOTHING = 1e-5  # share of the loss below which a term of Chinchilla's law explains nothing


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
    Either is in `notes`, and so are an outlier and an offset of 0 that was found. Raises UserError for fewer points than
    parameters, and for an offset that some y are not above.
    """
    parameters = 3 if offset is None else 2
    x, y = positive(parameters, x=x, y=y)
    (ln_x, u), (ln_y, v), pinned = *_above(x, y, offset), offset is not None
    b, (error, a, c), best = (values[0] for values in _search(u, v[None], np.ones((1, len(x))), pinned))
    if float(((v - v.mean()) ** 2).sum()) <= error:
        flat = "y does not fall with x, so there is no power law: this is its mean"
        return PowerLaw(float(y.mean()), 0.0, 0.0, (flat,))
    without = _scan(u, v, EXPONENTS[::4], 1.0 - np.eye(len(x)), pinned)[0].min(1)
    notes = (*untested(error, v, parameters), *outliers(x, y, error, without, parameters))
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
    (ln_x, u), (ln_y, v), pinned = *_above(x, y, offset), offset is not None
    found = []
    for rows in np.array_split(np.arange(len(v)), -(-len(v) * len(x) // 2000)):  # what fits into the cache
        b, (error, a, c), best = _search(u, v[rows], counts[rows], pinned, EXPONENTS[::4])
        open_ = (best == 0) | (best == len(EXPONENTS[::4]) - 1)
        total = counts[rows].sum(1)
        mean = (counts[rows] * v[rows]).sum(1) / total
        flat = (counts[rows] * (v[rows] - mean[:, None]) ** 2).sum(1) <= error
        few = np.array([len(np.unique(x[row > 0])) for row in counts[rows]]) < (2 if pinned else 3)
        ln_a = np.log(np.where(a > 0, a, np.nan)) + ln_y + b * ln_x
        for i in range(len(rows)):
            if flat[i] and not few[i]:
                found.append(PowerLaw(float(mean[i] * math.exp(ln_y) + (offset or 0.0)), 0.0, 0.0))
            elif open_[i] or few[i] or not abs(ln_a[i]) < 700:
                found.append(PowerLaw(math.nan, math.nan, math.nan))
            else:
                found.append(PowerLaw(math.exp(ln_a[i]), float(b[i]), float(offset or c[i] * math.exp(ln_y))))
    return found


def _above(x: np.ndarray, y: np.ndarray, offset: float | None) -> tuple[tuple[float, np.ndarray], ...]:
    """x, and y above a known offset, centred. Raises UserError where y is not above it."""
    above = y - (offset or 0.0)
    if (above <= 0).any():
        raise UserError(f"The offset {offset:g} is not below every y, the lowest of which is {y.min():g}. Give less.")
    return _centred(x), _centred(above)


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of `samples` sets the best exponent b, its (squared error, a, c) and its place among the exponents.

    x: (n,). y, w: (samples, n), w is how often each point counts. pinned: c is 0.
    """
    best = np.argmin(_scan(x, y, exponents, w, pinned)[0], -1)
    low, high = exponents[np.maximum(best - 1, 0)], exponents[np.minimum(best + 1, len(exponents) - 1)]
    b = _golden_section(lambda b: _given_exponent(x**-b, y, w, pinned)[0], low[:, None], high[:, None])
    return b[:, 0], np.stack(_given_exponent(x**-b, y, w, pinned)).T, best


def _scan(x: np.ndarray, y: np.ndarray, b: np.ndarray, w: np.ndarray, pinned: bool) -> tuple[np.ndarray, ...]:
    """_given_exponent of each set and exponent, (samples, exponents)."""
    return _given_exponent(x ** -b[:, None], y[..., None, :], w[:, None, :], pinned)


def _given_exponent(p: np.ndarray, y: np.ndarray, w: np.ndarray, pinned: bool) -> tuple[np.ndarray, ...]:
    """(squared error, a, c) of the best a and c for p = x^-b, over the last axis. Convex in c, so clipping c is exact."""
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
    return PowerLaw(_exp(intercept), -float(slope), 0.0, _polynomial_notes(x, y, np.log(y), 1))


def _polynomial_notes(x: np.ndarray, y: np.ndarray, explained: np.ndarray, degree: int) -> tuple[str, ...]:
    """Of a least-squares polynomial in ln(x); squared errors without each point follow from its leverage."""
    powers = np.vander(np.log(x) - np.log(x).mean(), degree + 1)
    q, _ = np.linalg.qr(powers)
    residual = explained - q @ (q.T @ explained)
    room = np.maximum(
        1 - (q**2).sum(1), 1e-12
    )  # one minus the leverage; 0 where the point is alone in saying something
    error = float((residual**2).sum())
    without = np.maximum(error - residual**2 / room, 0.0)
    return (*untested(error, explained, degree + 1), *outliers(x, y, error, without, degree + 1))


@dataclass(frozen=True)
class Parabola:
    """loss = curvature * (ln(lr / best_lr))^2 + best_loss; r2: share of the variance explained. notes: see PowerLaw."""

    best_lr: float
    best_loss: float
    curvature: float
    r2: float
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, lr: np.ndarray | float) -> np.ndarray:
        return self.curvature * np.log(np.asarray(lr) / self.best_lr) ** 2 + self.best_loss


def fit_best_lr(lr: np.ndarray, loss: np.ndarray) -> Parabola:
    """Least-squares parabola of the loss in ln(lr); its vertex is the best learning rate.

    Raises UserError for fewer than three learning rates, or when the loss has no minimum
    in ln(lr). A vertex outside the sweep is in `notes`.
    """
    lr, loss = positive(3, lr=lr, loss=loss)
    (middle, _), (ln_loss, scaled) = _centred(lr), _centred(loss)
    x = np.log(lr) - middle
    curvature, slope, level = (float(v) for v in np.polyfit(x, scaled, 2))
    if curvature * np.ptp(x) ** 2 <= ROUNDING * abs(level) or abs(at := -slope / (2 * curvature)) > FAR_OUT * np.ptp(x):
        raise UserError(
            f"The losses {loss.tolist()} at learning rates {lr.tolist()} have no minimum. "
            f"Give a sweep with learning rates on both sides of the best one."
        )
    error = float(((np.polyval((curvature, slope, level), x) - scaled) ** 2).sum())
    notes = _polynomial_notes(lr, loss, scaled, 2)
    best_lr, unit = math.exp(middle + at), math.exp(ln_loss)
    if not lr.min() <= best_lr <= lr.max():
        notes = (f"the best rate lies outside the sweep, {lr.min():g} to {lr.max():g}: widen it", *notes)
    r2 = 1 - error / float(((scaled - scaled.mean()) ** 2).sum())
    return Parabola(best_lr, (level - curvature * at * at) * unit, curvature * unit, r2, notes)


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta, N parameters, D tokens (Hoffmann et al. 2022). notes: see PowerLaw."""

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    notes: tuple[str, ...] = field(default=(), compare=False)

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
    A term that explains nothing, or grows, has NaN for its numbers; that and runs far from the law are in `notes`.
    Raises UserError for fewer than five runs, three different N or D, one ratio of D to a power of N in all of them
    (N and D cannot be told apart then), or without scipy.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as missing:
        raise UserError("The Chinchilla fit needs scipy. Type: pip install scipy") from missing
    n, d, loss = positive(3, N=n, D=d, loss=loss)
    _designed(n, d)
    unit, scaled = _centred(loss)  # the starting points are for losses of about 1
    data = np.log(n), np.log(d), np.log(scaled)
    tens, halves = np.arange(0, 26, 5.0), np.arange(0, 2.01, 0.5)
    grid = np.array(list(product(tens, tens, np.arange(-1, 1.01, 0.5), halves, halves)))
    ranked = grid[np.argsort(_huber_values(grid, *data))[:starts]]
    options = {"gtol": 1e-10}  # gradients are of the size of HUBER_DELTA: the default 1e-5 stops early
    found = [minimize(_huber, start, data, method="BFGS", jac=True, options=options) for start in ranked]
    return _judged(min(found, key=lambda f: f.fun).x + np.array([unit] * 3 + [0, 0]), *data[:2], data[2] + unit)


def _designed(n: np.ndarray, d: np.ndarray) -> None:
    """Raise UserError for runs that cannot tell five numbers."""
    if (runs := len(np.unique(np.stack([n, d]), axis=1).T)) < 5:
        raise UserError(f"This fit needs 5 different runs, got {runs}. Add runs.")
    if abs(float(np.corrcoef(np.log(n), np.log(d))[0, 1])) > 1 - 1e-4:
        raise UserError(
            "In all runs D is one power of N (such as 20 tokens per parameter), so what N and D do cannot be told "
            "apart. Add runs with other ratios."
        )


def _judged(point: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray, ln_loss: np.ndarray) -> Chinchilla:
    """The law at (a, b, e, alpha, beta), with what is not determined as NaN and in words."""
    terms, ln_sum = _terms(point, ln_n, ln_d)
    shares, residual = np.exp(terms - ln_sum), np.abs(ln_sum - ln_loss)
    a, b, e, alpha, beta = (float(v) for v in point)
    factors = {name: math.exp(v) if v < 700 else math.inf for name, v in (("A", a), ("B", b), ("E", e))}
    values, none = {**factors, "alpha": alpha, "beta": beta}, math.nan
    notes = [*untested(float((residual**2).sum()), ln_loss, len(point))]
    for i, (name, exponent, what) in enumerate((("A", "alpha", "N"), ("B", "beta", "D"))):
        falls = f"the loss does not fall with {what} in these runs"
        if np.ptp(shares[i]) < NOTHING:  # a constant, which is part of E
            values |= {name: none, exponent: none, "E": values["E"] + math.exp(terms[i].mean())}
            notes.append(f"{falls}, so {name} and {exponent} are not determined")
        elif point[3 + i] <= 0:
            values = dict.fromkeys(values, none)
            notes.append(f"{falls} but rises, so this is not their law")
        elif values[exponent] > STEEP:
            notes.append(
                f"{exponent} is above {STEEP:g}: only the smallest {what} tell it. Add runs with smaller {what}"
            )
    if _open(shares, ln_sum, ln_n, ln_d):
        values = dict.fromkeys(values, none)
        notes.append("these runs leave the five numbers open, as other laws fit as well: add runs with other N and D")
    elif values["E"] < NOTHING * math.exp(ln_loss.min()):
        values["E"] = 0.0
        notes.append("E is at its bound 0: the runs do not show where the fall ends")
    far = residual > max(FAR * 1.4826 * _typical(residual, len(point)), 1e-6)
    if far.any():
        runs = "; ".join(f"N = {math.exp(x):.4g}, D = {math.exp(z):.4g}" for x, z in zip(ln_n[far], ln_d[far]))
        notes.append(f"{int(far.sum())} of {len(far)} runs are far from the law: {runs}. Check them")
    return Chinchilla(**values, notes=tuple(notes))


def _typical(residual: np.ndarray, parameters: int) -> float:
    """The median residual of the runs that the fit does not go through, as Huber's does for one per parameter."""
    beyond = np.sort(residual)[parameters:]
    return float(np.median(beyond)) if len(beyond) else math.inf


def _open(shares: np.ndarray, ln_sum: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray) -> bool:
    """Whether the law can change and stay what it is at every run: its derivatives there depend on each other."""
    if shares[:2].max(1).min() < NOTHING:  # a term that is not there
        return False
    by_exponent = shares[0] * (ln_n - ln_n.mean()), shares[1] * (ln_d - ln_d.mean())
    slopes = np.stack([shares[0], shares[1], np.exp(ln_sum.min() - ln_sum), *by_exponent])
    slopes /= np.linalg.norm(slopes, axis=1, keepdims=True)
    return float(np.linalg.svd(slopes, compute_uv=False)[-1]) < DEPENDENT


def _terms(point: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logs of the three terms at (..., 5) points, (3, ..., runs), and of their sum."""
    a, b, e, alpha, beta = (np.asarray(v)[..., None] for v in np.moveaxis(point, -1, 0))
    terms = np.stack([a - alpha * ln_n, b - beta * ln_d, e + 0 * ln_n])
    return terms, np.logaddexp.reduce(terms)


def _huber_values(points: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray, ln_loss: np.ndarray) -> np.ndarray:
    """The objective of _huber at many points."""
    residual = _terms(points, ln_n, ln_d)[1] - ln_loss
    clipped = np.clip(residual, -HUBER_DELTA, HUBER_DELTA)
    return (clipped * (residual - clipped / 2)).sum(-1)


def _huber(point: np.ndarray, ln_n: np.ndarray, ln_d: np.ndarray, ln_loss: np.ndarray) -> tuple[float, np.ndarray]:
    """Objective and gradient at point = (a, b, e, alpha, beta), logs of A, B and E."""
    terms, ln_sum = _terms(point, ln_n, ln_d)
    share = np.exp(terms - ln_sum)
    residual = ln_sum - ln_loss
    clipped = np.clip(residual, -HUBER_DELTA, HUBER_DELTA)  # the derivative of the Huber function
    value = float((clipped * (residual - clipped / 2)).sum())
    slopes = np.stack([share[0], share[1], share[2], -share[0] * ln_n, -share[1] * ln_d])
    return value, slopes @ clipped


def leave_one_out(fit: Callable[..., Fit], *data: np.ndarray) -> list[Fit]:
    """The fit without each point in turn; how far one run decides the result."""
    return [fit(*(np.delete(column, i) for column in data)) for i in range(len(data[0]))]


@dataclass(frozen=True)
class Resamples(Generic[Fit]):
    """Fits to resampled points. skipped: why some resamples have none -> how many."""

    fits: list[Fit]
    skipped: dict[str, int]

    def __iter__(self) -> Iterator[Fit]:
        return iter(self.fits)

    @property
    def notes(self) -> tuple[str, ...]:
        """How many resamples were skipped, in words; () for none."""
        every = len(self.fits) + sum(self.skipped.values())
        return tuple(f"{count} of {every} resamples were skipped: {why}" for why, count in self.skipped.items())

    def interval(self, number: Callable[[Fit], float], level: float = 0.9) -> tuple[float, float]:
        """The percentile interval of a number of the fits; it covers less than `level` where many were skipped."""
        if not 0 < level < 1:
            raise UserError(f"The level of an interval is {level}; give a share between 0 and 1, such as 0.9.")
        low, high = np.quantile([number(fit) for fit in self.fits], [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def bootstrap(fit: Callable[..., Fit], *data: np.ndarray, samples: int, seed: int = 0) -> Resamples[Fit]:
    """The fit on resampled points, `samples` times; quantiles of its numbers are confidence intervals.

    Resamples that the fit refuses (too few different points), or whose law has a number that is not determined, are
    skipped and counted. Raises UserError where none is left.
    """
    if samples < 1:
        raise UserError(f"A bootstrap of {samples} samples says nothing. Give samples of 1 or more; 1000 is usual.")
    rng = np.random.default_rng(seed)
    fits, skipped = [], Counter[str]()
    for _ in range(samples):
        chosen = rng.integers(len(data[0]), size=len(data[0]))
        try:
            found = fit(*(column[chosen] for column in data))
        except UserError as error:
            skipped[str(error).split(", got")[0]] += 1
            continue
        if all(math.isfinite(v) for v in _numbers(found)):
            fits.append(found)
        else:
            skipped[getattr(found, "notes", ("it is not a number",))[0]] += 1
    if not fits:
        raise UserError(f"None of {samples} resamples could be fitted: {'; '.join(skipped)}. Add runs.")
    return Resamples(fits, dict(skipped))


def _numbers(fit: object) -> list[float]:
    """Those of a law, or a number itself."""
    return [v for v in (vars(fit).values() if hasattr(fit, "__dict__") else [fit]) if isinstance(v, float)]
