"""The best value of a swept setting (a rate, a batch, a timescale of decay), and its power law over size or tokens.

The runs of one x are a sweep: their loss is a parabola in ln(setting), whose lowest point is the best value there. A
line through ln(best) over ln(x), in which every optimum counts by its precision, is the law.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import by_chance, positive
from lit_gpt.scaling.fit import PowerLaw, power_laws
from lit_gpt.scaling.noise import LEVEL, student

SAME = 0.02  # values of x closer than this share are one sweep: budgets are rounded to whole batches
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


def fit_optima(x: np.ndarray, setting: np.ndarray, loss: np.ndarray, *, constant: float | None = 0.0) -> Optima:
    """The best setting of each x, and the law through those that their sweeps bracket.

    constant: c where it is known; None finds it, with b <= 0 and 0 <= c <= the smallest optimum. Where fewer than two
    sweeps (four with a free c) bracket their optimum the law's numbers are NaN. Raises UserError where no sweep has a
    minimum.
    """
    x, setting, loss = positive(1, x=x, setting=setting, loss=loss)
    optima, notes, squares, freedom = [], list[str](), 0.0, 0
    for here in groups(x):
        found, error = _parabola(x[here], setting[here], loss[here])
        if isinstance(found, str):
            notes.append(found)
            continue
        optima.append(found)
        squares, freedom = squares + error, freedom + int(here.sum()) - 3
        if not found.inside:
            low, high = setting[here].min(), setting[here].max()
            notes.append(
                f"at x = {found.x:.4g} the best value {found.best:.3g} lies outside the sweep, {low:.3g} to {high:.3g}"
                ", so it is left out of the law: widen the sweep"
            )
    if not optima:
        raise UserError(f"No sweep has a minimum: {'; '.join(notes)}.")
    noise = math.sqrt(squares / freedom) if freedom else 0.0
    if not freedom:
        notes.append("three runs are no test of a parabola, which goes through any of them: add runs to the sweeps")
    found = Optima(math.nan, math.nan, math.nan, tuple(optima), noise, freedom, tuple(notes))
    return _with_line(found, constant) if constant is not None else _with_constant(found)


def groups(x: np.ndarray) -> list[np.ndarray]:
    """Which runs share an x, (runs,) each, from the smallest x to the largest."""
    order = np.argsort(x)
    jumps = np.diff(np.log(x[order])) > SAME
    which = np.empty(len(x), dtype=int)
    which[order] = np.r_[0, np.cumsum(jumps)]
    return [which == i for i in range(which.max() + 1)]


def _parabola(x: np.ndarray, setting: np.ndarray, loss: np.ndarray) -> tuple[Optimum | str, float]:
    """The optimum, or why there is none, and the squared error."""
    at = float(np.exp(np.log(x).mean()))
    if len(np.unique(setting)) < 3:
        return f"at x = {at:.4g} there are {len(np.unique(setting))} different settings, and a parabola needs 3", 0.0
    middle = float(np.log(setting).mean())
    powers = np.vander(np.log(setting) - middle, 3)
    (curvature, slope, level), *_ = np.linalg.lstsq(powers, loss, rcond=None)
    error = float(((powers @ (curvature, slope, level) - loss) ** 2).sum())
    if curvature <= 1e-9 * loss.mean() or abs(vertex := -slope / (2 * curvature)) > 10 * np.ptp(powers[:, 1]):
        return f"at x = {at:.4g} the losses have no minimum: add settings on both sides of the best one", 0.0
    by = np.array([slope / (2 * curvature**2), -1 / (2 * curvature), 0.0])
    spread = math.sqrt(float(by @ np.linalg.inv(powers.T @ powers) @ by))
    best = math.exp(middle + vertex)
    low = float(level - curvature * vertex**2)
    inside = bool(setting.min() <= best <= setting.max())
    return Optimum(at, best, low, float(curvature), spread, len(loss), inside), error


def _with_constant(found: Optima) -> Optima:
    if len(found.inside) < 4:
        return _too_few(found, 4)
    x, best = (np.array([getattr(o, name) for o in found.inside]) for name in ("x", "best"))
    (law,) = power_laws(x, best[None], np.ones((1, len(x))))
    return with_law(replace(found, notes=(*_open(law), *found.notes)), law)


def with_law(found: Optima, law: PowerLaw) -> Optima:
    """The same optima with this law of best(x)."""
    return replace(found, a=law.a, b=-law.b, c=law.c)


def _with_line(found: Optima, constant: float) -> Optima:
    """a and b by a line through logarithms above the constant, in which optima weigh by their precision."""
    if len(found.inside) < 2:
        return _too_few(found, 2)
    x, best, spread = (np.array([getattr(o, name) for o in found.inside]) for name in ("x", "best", "spread"))
    if constant >= best.min():
        raise UserError(f"The constant {constant:g} is not below the least optimum {best.min():.4g}. Give less.")
    above, spread = best - constant, spread * best / (best - constant)
    middle = float(np.log(x).mean())
    b, level = np.polyfit(np.log(x) - middle, np.log(above), 1, w=1 / spread)
    notes = _beside(np.log(above) - level - b * (np.log(x) - middle), spread, found.noise, found.freedom)
    if len(x) == 2:
        notes = ("two optima are no test of a power law, which goes through any two: add a third x", *notes)
    factor = math.exp(level - b * middle)
    return replace(found, a=factor, b=float(b), c=constant, notes=(*notes, *found.notes))


def _too_few(found: Optima, needed: int) -> Optima:
    why = f"a law over x needs {needed} sweeps that bracket their optimum, and {len(found.inside)} did"
    return replace(found, notes=(why, *found.notes))


def _open(law: PowerLaw) -> tuple[str, ...]:
    """Sentences where the optima leave the constant open."""
    if math.isnan(law.b):
        return ("the optima do not show a fall to a constant: fit best_rate, or add sweeps further apart",)
    if law.b == 0:
        return ("the optima do not fall with x, so this is their mean",)
    return ("the constant is at its bound 0: fit best_rate",) if law.c == 0 else ()


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
