"""The best value of a swept setting (a rate, a batch, a timescale of decay), and its power law over size or tokens.

The runs of one x are a sweep: their loss is a parabola in ln(setting), whose lowest point is the best value there. A
line through ln(best) over ln(x), in which every optimum counts by its precision, is the law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import ROUNDING, by_chance, positive
from lit_gpt.scaling.fit import power_laws
from lit_gpt.scaling.noise import LEVEL, student
from lit_gpt.scaling.parabolas import misshapen

SAME = 0.02  # values of x closer than this share are one sweep: budgets are rounded to whole batches
FAR_OUT = 10.0  # widths of a sweep from its middle, beyond which the lowest point of a parabola is that of a line
NEEDED_WITH_C = 4  # optima for a law with a constant: one more than it has numbers
NONE = math.nan, math.nan, math.nan
CHANCE = 0.01  # of the test whether optima lie on the law


@dataclass(frozen=True)
class Optimum:
    """loss(setting) = curvature * ln(setting / best)^2 + loss, of the runs at one x.

    spread: standard error of ln(best) for a noise of 1 in the loss. runs: how many. inside: whether best lies within
    the sweep.
    """

    x: float
    best: float
    loss: float
    curvature: float
    spread: float
    runs: int
    inside: bool


@dataclass(frozen=True)
class Optima:
    """best(x) = a x^b + c. noise: standard deviation of the losses around their parabolas, of `freedom` degrees.

    optima: one for each x whose losses have a minimum. notes: what these numbers cannot say.
    """

    a: float
    b: float
    c: float
    optima: tuple[Optimum, ...]
    noise: float
    freedom: int
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def inside(self) -> list[Optimum]:
        """Those that their sweep brackets, through which the law goes."""
        return [o for o in self.optima if o.inside]

    def best(self, x: np.ndarray | float) -> np.ndarray:
        """The law's setting at any x."""
        return self.a * np.asarray(x, dtype=np.float64) ** self.b + self.c

    def loss(self, x: np.ndarray, setting: np.ndarray) -> np.ndarray:
        """The parabola of each x; NaN at an x without a sweep."""
        found = np.full(len(x), np.nan)
        for o in self.optima:
            here = np.abs(np.log(x / o.x)) < SAME
            found[here] = o.curvature * np.log(setting[here] / o.best) ** 2 + o.loss
        return found

    def table(self, setting: str, x: str) -> Mapping[str, list[list[str]]]:
        """Rows of cells, the first of names: each optimum with its interval (delta method, Student's t)."""
        rows = [[x, f"best {setting}", f"{LEVEL:.0%} interval", "loss there", "runs"]]
        for o in self.optima:
            half = student(self.freedom) * self.noise * o.spread if self.freedom else math.nan
            ends = f"{o.best * math.exp(-half):.3g} to {o.best * math.exp(half):.3g}" if half < 700 else "open"
            rows.append([f"{o.x:.4g}", f"{o.best:.4g}", ends, f"{o.loss:.4f}", str(o.runs)])
        return {f"Best {setting} of each {x}": rows}


@dataclass(frozen=True)
class Valleys:
    """The parabolas of `sets` sets of losses at `sweeps` values of x; arrays are (sets, sweeps) but for x.

    best, loss, curvature, spread: see Optimum. valid: whether it has a minimum. inside: whether that lies
    within the sweep. error: squared, around the parabolas. why: of each sweep, what it lacks without a minimum.
    """

    x: np.ndarray
    best: np.ndarray
    loss: np.ndarray
    curvature: np.ndarray
    spread: np.ndarray
    runs: np.ndarray
    valid: np.ndarray
    inside: np.ndarray
    error: np.ndarray
    why: tuple[str, ...]

    @property
    def freedom(self) -> np.ndarray:
        """Degrees of freedom of each set's noise, (sets,)."""
        return ((self.runs - 3) * self.valid).sum(1).astype(int)

    @property
    def noise(self) -> np.ndarray:
        """Standard deviation of the losses around their parabolas, (sets,); 0 where nothing says it."""
        return np.sqrt((self.error * self.valid).sum(1) / np.maximum(self.freedom, 1)) * (self.freedom > 0)

    def optima(self, i: int, law: tuple[float, float, float], notes: tuple[str, ...] = ()) -> Optima:
        """Those of set i, with this law."""
        columns = self.best, self.loss, self.curvature, self.spread, self.runs, self.inside
        rows = zip(self.x.tolist(), *(column[i].tolist() for column in columns), self.valid[i])
        found = tuple(Optimum(*numbers) for *numbers, valid in rows if valid)
        return Optima(*law, found, float(self.noise[i]), int(self.freedom[i]), notes)


def fit_optima(x: np.ndarray, setting: np.ndarray, loss: np.ndarray, *, constant: float | None = 0.0) -> Optima:
    """The best setting of each x, and the law through those that their sweeps bracket.

    constant: c where it is known; None finds it, with b <= 0 and 0 <= c <= the smallest optimum. Where fewer than two
    sweeps (four with a free c) bracket their optimum the law's numbers are NaN. Raises UserError where no sweep has a
    minimum.
    """
    x, setting, loss = positive(1, x=x, setting=setting, loss=loss)
    found = _valleys(x, setting, loss[None], np.ones((1, len(loss))))
    sides = [(setting[here].min(), setting[here].max()) for here in groups(x)]
    notes = [
        f"at x = {at:.4g} {found.why[i]}"
        if not found.valid[0, i]
        else f"at x = {at:.4g} the best value {found.best[0, i]:.3g} lies outside the sweep, {sides[i][0]:.3g} to "
        f"{sides[i][1]:.3g}, so it is left out of the law: widen the sweep"
        for i, at in enumerate(found.x)
        if not found.inside[0, i]
    ]
    if not found.valid.any():
        raise UserError(f"No sweep has a minimum: {'; '.join(notes)}.")
    if not found.freedom[0]:
        notes.append("three runs are no test of a parabola, which goes through any of them: add runs to the sweeps")
    if constant is not None and (found.inside & (found.best <= constant)).any():
        raise UserError(f"The constant {constant:g} is not below the least optimum. Give less.")
    law = _laws(found, constant)[0]
    parts = [here for here, valid in zip(groups(x), found.valid[0]) if valid]
    shape = misshapen(parts, np.log(setting), loss, {"x": x, "setting": setting, "loss": loss}, "settings")
    return found.optima(0, law, (*_judged(found, law, constant), *shape, *notes))


def refit(
    x: np.ndarray, setting: np.ndarray, losses: np.ndarray, counts: np.ndarray, *, constant: float | None = 0.0
) -> list[Optima]:
    """fit_optima of many sets of losses, without notes; losses, counts: (sets, runs), see law.Law.many."""
    found = _valleys(x, setting, losses, counts)
    return [found.optima(i, law) for i, law in enumerate(_laws(found, constant))]


def groups(x: np.ndarray) -> list[np.ndarray]:
    """Which runs share an x, (runs,) each, from the smallest x to the largest."""
    order = np.argsort(x)
    jumps = np.diff(np.log(x[order])) > SAME
    which = np.empty(len(x), dtype=int)
    which[order] = np.r_[0, np.cumsum(jumps)]
    return [which == i for i in range(which.max() + 1)]


def _valleys(x: np.ndarray, setting: np.ndarray, losses: np.ndarray, counts: np.ndarray) -> Valleys:
    """losses, counts: (sets, runs)."""
    sweeps, why = list[tuple[np.ndarray, ...]](), list[str]()
    for here in groups(x):
        different, place = np.unique(setting[here], return_inverse=True)
        there = np.stack([counts[:, here][:, place == i].sum(1) > 0 for i in range(len(different))], 1)
        sweeps.append(_valley(np.log(setting[here]), losses[:, here], counts[:, here], there.sum(1) >= 3))
        lacks = f"there are {len(different)} different settings, and a parabola needs 3"
        why.append(
            lacks if len(different) < 3 else "the losses have no minimum: add settings on both sides of the best"
        )
    at = np.array([math.exp(float(np.log(x[here]).mean())) for here in groups(x)])
    best, loss, curvature, spread, runs, valid, inside, error = (np.stack(arrays, 1) for arrays in zip(*sweeps))
    return Valleys(at, best, loss, curvature, spread, runs, valid, inside, error, tuple(why))


def _valley(ln_setting: np.ndarray, y: np.ndarray, w: np.ndarray, enough: np.ndarray) -> tuple[np.ndarray, ...]:
    """The columns of Valleys of one sweep. y, w: (sets, runs). enough: (sets,), of different settings."""
    middle, width = float(ln_setting.mean()), float(np.ptp(ln_setting))
    powers = np.vander(ln_setting - middle, 3)
    normal = np.einsum("sn,ni,nj->sij", w, powers, powers)
    inverse = np.linalg.inv(np.where(enough[:, None, None], normal, np.eye(3)))
    numbers = np.einsum("sij,sn,nj->si", inverse, w * y, powers)
    error = (w * (y - numbers @ powers.T) ** 2).sum(1)
    curvature, slope, level = numbers.T
    valid = enough & (curvature > 1e-9 * np.abs(level))
    bend = np.where(valid, curvature, 1.0)
    vertex = -slope / (2 * bend)
    valid &= np.abs(vertex) <= FAR_OUT * width
    vertex = np.where(valid, vertex, 0.0)
    by = np.stack([slope / (2 * bend**2), -1 / (2 * bend), 0 * bend], 1)
    spread = np.sqrt(np.einsum("si,sij,sj->s", by, inverse, by))
    inside = valid & (ln_setting.min() <= middle + vertex) & (middle + vertex <= ln_setting.max())
    low = level - curvature * vertex**2
    return np.exp(middle + vertex), low, curvature, spread, w.sum(1).astype(int), valid, inside, error


def _laws(found: Valleys, constant: float | None) -> list[tuple[float, float, float]]:
    """(a, b, c) of each set; NaN where it has too few optima.

    With a known c, a and b are a line through logarithms above it, in which optima weigh by their precision.
    """
    if constant is None:
        enough = found.inside.sum(1) >= NEEDED_WITH_C
        used = found.inside | ~enough[:, None]  # of sets without a law all, as no optimum at all is no set of points
        laws = power_laws(found.x, np.where(found.inside, found.best, 1.0), used.astype(float))
        return [(law.a, -law.b, law.c) if ok else NONE for law, ok in zip(laws, enough)]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # sets of one x have no slope
        above = np.where(found.inside, found.best - constant, 1.0)
        weight = np.where(found.inside, (above / (found.spread * found.best)) ** 2, 0.0)
        u, v = np.log(found.x), np.log(above)
        total = weight.sum(1)
        u_mean, v_mean = (weight * u).sum(1) / total, (weight * v).sum(1) / total
        away = u - u_mean[:, None]
        b = (weight * away * v).sum(1) / (weight * away**2).sum(1)
        a = np.exp(v_mean - b * u_mean)
    enough = found.inside.sum(1) >= 2
    return [(float(p), float(q), constant) if ok else NONE for p, q, ok in zip(a, b, enough)]


def _judged(found: Valleys, law: tuple[float, float, float], constant: float | None) -> tuple[str, ...]:
    """What the law of a single set cannot say."""
    inside = found.inside[0]
    needed = 2 if constant is not None else NEEDED_WITH_C
    if inside.sum() < needed:
        return (f"a law over x needs {needed} sweeps that bracket their optimum, and {inside.sum()} did",)
    a, b, c = law
    if constant is None:
        return _open(a, b, c)
    if inside.sum() == 2:
        return ("two optima are no test of a power law, which goes through any two: add a third x",)
    above = found.best[0, inside] - c
    residual = np.log(above) - math.log(a) - b * np.log(found.x[inside])
    spread = found.spread[0, inside] * found.best[0, inside] / above
    noise = float(found.noise[0]) if found.noise[0] > ROUNDING * np.abs(found.loss[0, inside]).min() else 0.0
    return _beside(residual, spread, noise, int(found.freedom[0]))


def _open(a: float, b: float, c: float) -> tuple[str, ...]:
    """Sentences where the optima leave the constant open."""
    if math.isnan(a):
        return ("the optima do not show a fall to a constant: fit best_rate, or add sweeps further apart",)
    if b == 0:
        return ("the optima do not fall with x, so this is their mean",)
    return ("the constant is at its bound 0: fit best_rate",) if c == 0 else ()


def _beside(residual: np.ndarray, spread: np.ndarray, noise: float, freedom: int) -> tuple[str, ...]:
    """A sentence where the optima lie further from their law than the noise of the losses explains (an F test)."""
    more = len(residual) - 2
    if more < 1 or freedom < 1 or not noise:
        return ()
    within, beside = noise**2 * freedom, float(((residual / spread) ** 2).sum())
    chance = by_chance(within, within + beside, more, freedom)
    if chance > CHANCE:
        return ()
    return (
        f"the optima lie further from a power law than noise explains ({chance:.1%} by chance): it is not their law",
    )
