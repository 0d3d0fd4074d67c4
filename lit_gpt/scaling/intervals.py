"""How sure the numbers of a law are: resampling, leaving out, prediction, and lack of fit.

Two ways of resampling. With RESAMPLED runs or more, runs are drawn with replacement, as in the published fits. A ladder
of a few runs cannot be drawn from (half of the draws would lack its largest model), so there the law stays and the
noise is drawn anew: losses of the law plus Gaussian noise, of a size that varies from draw to draw as the size
estimated from few residuals does. That makes the percentiles those of Student's t where a law is linear in its numbers,
and follows the law where it is not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import ROUNDING, by_chance, chi_square_beyond
from lit_gpt.scaling.law import RUN, Data, Fitted, Law

Fit = TypeVar("Fit")
RESAMPLED = 30  # runs, from which the draw of runs is close enough to a draw of all possible ones
SHARE = 0.8  # of the training curves in a draw: Hoffmann et al. 2022, table A3
LEVEL = 0.9  # of intervals
ALIKE = 1e-6  # relative difference below which two runs are repetitions of one; budgets differ by a batch, not by this


@dataclass(frozen=True)
class Resamples(Generic[Fit]):
    """Fits to resampled points. skipped: why some resamples have none -> how many."""

    fits: list[Fit]
    skipped: Mapping[str, int]

    def __iter__(self) -> Iterator[Fit]:
        return iter(self.fits)

    @property
    def notes(self) -> tuple[str, ...]:
        """How many resamples were skipped, in words; () for none."""
        every = len(self.fits) + sum(self.skipped.values())
        return tuple(f"{count} of {every} resamples were skipped: {why}" for why, count in self.skipped.items())

    def interval(self, number: Callable[[Fit], float], level: float = LEVEL) -> tuple[float, float]:
        """The percentile interval of a number of the fits; it covers less than `level` where many were skipped."""
        return percentiles(np.array([number(fit) for fit in self.fits]), level)


def percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """The interval that holds the middle `level` of the values. Raises UserError for a level that is no share."""
    low, high = _ends(values, level)
    return float(low), float(high)


def _ends(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the middle `level` of the values along their first axis.

    Another value like n others is below the k-th of them in k of n + 1 cases, so that quantile q is the (n + 1) q-th
    (Hyndman and Fan 1996, definition 6). Numpy's usual one makes a 90% interval of 100 values hold 88% of others.
    """
    if not 0 < level < 1:
        raise UserError(f"The level of an interval is {level}; give a share between 0 and 1, such as 0.9.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high


def leave_one_out(fit: Callable[..., Fit], *data: np.ndarray) -> list[Fit]:
    """The fit without each point in turn; how far one run decides the result."""
    return [fit(*(np.delete(column, i) for column in data)) for i in range(len(data[0]))]


def bootstrap(fit: Callable[..., Fit], *data: np.ndarray, samples: int, seed: int = 0) -> Resamples[Fit]:
    """The fit on resampled points, `samples` times; quantiles of its numbers are confidence intervals.

    Resamples that the fit refuses (too few different points), or whose law has a number that is not determined, are
    skipped and counted. Raises UserError where none is left.
    """
    check_samples(samples)
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


def check_samples(samples: int) -> None:
    """Raise UserError for no samples."""
    if samples < 1:
        raise UserError(f"A bootstrap of {samples} samples says nothing. Give samples of 1 or more; 1000 is usual.")


def _numbers(fit: object) -> list[float]:
    """Those of a law, or a number itself."""
    return [v for v in (vars(fit).values() if hasattr(fit, "__dict__") else [fit]) if isinstance(v, float)]


@dataclass(frozen=True)
class Spread:
    """The spread of equal runs: a standard deviation of residuals, how many independent ones it is from (infinite where
    it is given), and where it comes from, in words.
    """

    size: float
    freedom: float
    source: str

    def sizes(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """Sizes for new noise, (samples,), which vary as the size that is estimated from few residuals does."""
        spread = self.freedom / rng.chisquare(self.freedom, samples) if self.freedom < math.inf else np.ones(samples)
        return self.size * np.sqrt(spread)


def residuals(law: Law, fitted: Fitted, data: Data) -> np.ndarray:
    """What is left of each point of the fit: y - law, or ln(y) - ln(law) where the law is fitted so.

    Points of which the law says nothing, such as a sweep without a minimum, and steps to come are left out.
    """
    data = fitted.points or data
    seen, said = data[law.explains], fitted.curve(data)
    left = np.log(seen) - np.log(said) if law.relative else seen - said
    return left[np.isfinite(left)]


def noise_of(law: Law, fitted: Fitted, data: Data, given: float | None = None) -> Spread:
    """The noise that intervals are made of. given: the standard deviation of equal runs in units of y, where known.

    A law that misses by more than the given noise is judged by its residuals, which are larger.
    """
    left = residuals(law, fitted, data)
    of_runs = fitted.points and RUN in fitted.points and not law.designed
    count = len(np.unique(fitted.points[RUN])) if fitted.points and of_runs else len(left)
    freedom = max(count - fitted.free, 1) if law.curves else count - fitted.free
    of_residuals = math.sqrt(float((left**2).sum()) / freedom) if freedom > 0 else math.nan
    if given is not None:
        size = given / float(np.mean(data[law.explains])) if law.relative else given
        if freedom < 1 or chi_square_beyond(float((left**2).sum()) / size**2, freedom) > 0.05:
            return Spread(size, math.inf, f"the noise {given:g} that was given")
    words = f"the residuals of {count} {'logged steps' if law.every_step else 'runs'} with {fitted.free} numbers"
    return Spread(of_residuals, max(freedom, 0), words)


@dataclass(frozen=True)
class Draws:
    """A law fitted to many sets of data. sizes: of the noise of each. way: how the sets were made, in words."""

    fits: list[Fitted]
    sizes: np.ndarray
    skipped: int
    way: str

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the draws."""
        every = len(self.fits) + self.skipped
        return (f"{self.skipped} of {every} resamples had no law and were skipped",) if self.skipped else ()

    def intervals(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """Number -> its percentile interval."""
        names = self.fits[0].numbers
        return {name: percentiles(np.array([fit.numbers[name] for fit in self.fits]), level) for name in names}


def draw(
    law: Law, fitted: Fitted, data: Data, fixed: Mapping[str, float], noise: Spread, samples: int = 1000, seed: int = 0
) -> Draws:
    """The law of `samples` resamples; see the top of this file. Raises UserError where none has a law.

    Points of one run (data["run"]) are drawn together.
    """
    check_samples(samples)
    rng = np.random.default_rng(seed)
    y = data[law.explains]
    runs = data.get(RUN, np.arange(len(y)))
    units, unit_of = np.unique(runs, return_inverse=True)
    if not law.designed and (law.curves or len(units) >= RESAMPLED):
        way, picked = _picked(rng, len(units), samples, law.curves)
        counts, losses, sizes = picked[:, unit_of].astype(float), np.tile(y, (samples, 1)), np.full(samples, noise.size)
    elif not math.isfinite(noise.size):
        raise UserError(
            f"{len(y)} runs say nothing of the noise around a law of {fitted.free} numbers, so there are no intervals. "
            "Add runs, or give the standard deviation of equal runs: --noise 0.003."
        )
    else:
        way = f"the law with new noise of the size of {noise.source}"
        sizes, counts = noise.sizes(samples, rng), np.ones((samples, len(y)))
        said = fitted.curve(data)
        by = sizes[:, None] * _new_noise(law, residuals(law, fitted, data), (samples, len(y)), rng)
        losses = np.where(np.isfinite(said), noisy(law, said, by), y)
    found = refit(law, fitted, data, fixed, losses, counts)
    kept = [i for i, fit in enumerate(found) if fit is not None]
    if not kept:
        raise UserError(f"None of {samples} resamples has a law. Add runs, or runs further apart.")
    return Draws([fit for fit in found if fit is not None], sizes[kept], samples - len(kept), way)


def _picked(rng: np.random.Generator, units: int, samples: int, curves: bool) -> tuple[str, np.ndarray]:
    """How often each run is in each sample, (samples, runs), and in words how it was drawn."""
    if not curves:
        return f"{units} runs drawn with replacement", rng.multinomial(units, np.full(units, 1 / units), size=samples)
    kept = rng.permuted(np.tile(np.arange(units), (samples, 1)), axis=1) < round(SHARE * units)
    return f"{SHARE:.0%} of {units} runs drawn, as Hoffmann et al. do: how much single runs decide", kept


def _new_noise(law: Law, left: np.ndarray, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Noise of size 1: Gaussian, and along logged steps, whose neighbours may err alike, blocks of their residuals.

    The blocks go around the end, so that every residual is drawn as often (Politis and Romano 1992).
    """
    if not law.every_step:
        return rng.standard_normal(shape)
    length = block_length(left)
    starts = rng.integers(len(left), size=(shape[0], shape[1] // length + 1))
    blocks = left[(starts[..., None] + np.arange(length)) % len(left)].reshape(shape[0], -1)[:, : shape[1]]
    return blocks / math.sqrt(float((left**2).mean()))


def block_length(left: np.ndarray) -> int:
    """Of n residuals, by the correlation r of neighbours: (sqrt(6) r / (1 - r^2))^(2/3) n^(1/3) (Carlstein 1986).

    Longer blocks than the correlation asks for make intervals too narrow, as a fit takes away what is slow.
    """
    r = min(max(float(left[1:] @ left[:-1] / max(float(left @ left), 1e-300)), 0.0), 0.99)
    best = (math.sqrt(6) * r / (1 - r * r)) ** (2 / 3) * len(left) ** (1 / 3)
    return min(math.ceil(max(best, 1.0)), max(len(left) // 4, 1))


def noisy(law: Law, said: np.ndarray, by: np.ndarray) -> np.ndarray:
    """What the law says, with these residuals."""
    return said * np.exp(by) if law.relative else said + by


def refit(
    law: Law, fitted: Fitted, data: Data, fixed: Mapping[str, float], losses: np.ndarray, counts: np.ndarray
) -> list[Fitted | None]:
    """The law of each set, of losses and how often each run counts, (samples, runs); None where it has none, or fewer
    numbers.
    """
    if law.many is not None:
        found = law.many(fitted, data, fixed, losses, counts)
    else:
        found = law.refit(data, fixed, losses, counts)
    return [fit if fit and _whole(fit, fitted) else None for fit in found]


def _whole(fit: Fitted, fitted: Fitted) -> bool:
    """Whether a fit has every number of that to all data: fewer optima may determine no law over size."""
    return fitted.numbers.keys() <= fit.numbers.keys() and all(math.isfinite(v) for v in fit.numbers.values())


def without_each(law: Law, fitted: Fitted, data: Data, fixed: Mapping[str, float]) -> list[Fitted | None]:
    """The law without each run in turn; None where the others have none."""
    y = data[law.explains]
    units, unit_of = np.unique(data.get(RUN, np.arange(len(y))), return_inverse=True)
    counts = np.array([(unit_of != i).astype(float) for i in range(len(units))])
    return refit(law, fitted, data, fixed, np.tile(y, (len(units), 1)), counts)


def prediction(law: Law, draws: Draws, at: Data, level: float = LEVEL, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of what a new run at each of these places will show: the law's spread and the noise of one run."""
    said = np.array([(fit.run or fit.curve)(at) for fit in draws.fits])
    by = draws.sizes[:, None] * np.random.default_rng(seed).standard_normal(said.shape)
    return _ends(noisy(law, said, by), level)


@dataclass(frozen=True)
class LackOfFit:
    """Whether a law misses by more than equal runs differ: the chance to miss so far by noise, and in words.

    pure: the standard deviation of equal runs, NaN where there are none.
    """

    chance: float
    pure: float
    words: str


def lack_of_fit(law: Law, fitted: Fitted, data: Data, noise: float | None = None) -> LackOfFit | None:
    """The F test against repeated runs (other seeds), or the chi-square test against a given noise; None without both.

    The F test: Draper and Smith, Applied Regression Analysis, section 2.1.
    """
    points = fitted.points or data
    heard = np.isfinite(fitted.curve(points))
    if law.curves or not heard.any():
        return None
    left = residuals(law, fitted, data)
    squares = float((left**2).sum())
    groups = _repeated(law, {name: column[heard] for name, column in points.items()})
    beyond, places = len(left) - groups.max() - 1, int(groups.max()) + 1
    means = np.array([left[groups == i].mean() for i in range(places)])
    pure = float(((left - means[groups]) ** 2).sum())
    size = math.sqrt(pure / beyond) if beyond else math.nan
    # Repetitions that differ by rounding alone are copies, or of one seed, and would reject every law.
    differ = pure > beyond * (ROUNDING * (1.0 if law.relative else float(np.mean(data[law.explains])))) ** 2
    if differ and places > fitted.free:
        chance = by_chance(pure, squares, places - fitted.free, int(beyond))
        words = f"against {len(left)} runs at {places} places, equal runs differ by {size:.4g}"
    elif noise is not None and len(left) > fitted.free:
        own = noise / float(np.mean(data[law.explains])) if law.relative else noise
        chance = chi_square_beyond(squares / own**2, len(left) - fitted.free)
        words = f"against the given noise {noise:g}"
    else:
        return None
    verdict = "the law misses more than noise does" if chance < 0.05 else "the law misses no more than noise does"
    return LackOfFit(chance, size, f"{verdict} (p = {chance:.2g}, {words})")


def _repeated(law: Law, data: Data) -> np.ndarray:
    """The number of the place of each run; repetitions share one."""
    places = np.log(np.stack([data[name] for name in law.given]))
    seen: list[np.ndarray] = []
    found = []
    for place in places.T:
        same = next((i for i, other in enumerate(seen) if np.abs(other - place).max() < ALIKE), len(seen))
        found.append(same)
        if same == len(seen):
            seen.append(place)
    return np.array(found)
