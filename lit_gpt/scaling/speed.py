"""How much less compute one ladder needs than another for the same loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import by_chance, far_off, positive
from lit_gpt.scaling.descent import descend
from lit_gpt.scaling.sums import Problem, exp

CHANCE = 0.01  # of the test of one exponent for both ladders
NOTHING = 1e-6  # share of the loss below which the offset is none
FLAT = 1e-3  # an exponent below which the loss does not fall
AWAY = -50.0  # ln of an offset that is none


@dataclass(frozen=True)
class SpeedUp:
    """L = offset + factor (speed_up^(variant - 1) C)^-alpha: variant 1 is the baseline, 2 the other ladder."""

    speed_up: float
    alpha: float
    offset: float
    factor: float

    def __call__(self, compute: np.ndarray, variant: np.ndarray) -> np.ndarray:
        return self.offset + self.factor * (compute * self.speed_up ** (variant - 1)) ** -self.alpha


@dataclass(frozen=True)
class Ladders:
    """Two ladders whose law is sought. compute: of each run. problem: one exponent for both. own: one for each."""

    compute: np.ndarray
    problem: Problem[SpeedUp]
    own: Problem[SpeedUp]
    given: tuple[str, ...]


def ladders(
    compute: np.ndarray, variant: np.ndarray, loss: np.ndarray, alpha: float | None, offset: float | None
) -> Ladders:
    """One law for both ladders, for Huber's fit of ln(loss). variant: 1 of the baseline's runs, 2 of the others.

    alpha, offset: where they are known from elsewhere. Raises UserError for ladders that are not two, and for losses
    that are not above a given offset.
    """
    (compute, loss), variant = positive(2, compute=compute, loss=loss), np.asarray(variant, dtype=np.float64)
    if set(variant.tolist()) != {1.0, 2.0}:
        raise UserError("A speed-up is of two ladders. Give runs of a baseline and of one variant, and no others.")
    if offset is not None and not 0 <= offset < loss.min():
        raise UserError(f"The offset {offset:g} is not below every loss, the least is {loss.min():.4g}. Give less.")
    middle = float(np.log(compute).mean())
    u, one, zero, other = np.log(compute) - middle, np.ones_like(loss), np.zeros_like(loss), variant - 1
    # numbers: ln(factor) at the middle, alpha, alpha ln(speed_up), ln(offset), how much the variant's alpha is larger
    terms = np.stack([np.stack([one, -u, -other, zero, -u * other], 1), np.stack([zero, zero, zero, one, zero], 1)])
    free = np.array([True, alpha is None, True, offset is None, False])

    def read(point: np.ndarray) -> SpeedUp:
        exponent, floor = float(point[1]), exp(point[3]) if point[3] > AWAY else 0.0
        if exponent <= FLAT:
            return SpeedUp(*[math.nan] * 4)
        return SpeedUp(exp(point[2] / exponent), exponent, floor, exp(point[0] + exponent * middle))

    factors = np.array([1, 0, 0, offset is None, 0])
    problem = Problem(terms, _starts(alpha, offset), factors, read, free)
    parts = (("alpha", alpha), ("the offset", offset))
    given = tuple(f"{name} is {'fitted to both ladders' if value is None else 'given'}" for name, value in parts)
    return Ladders(compute, problem, replace(problem, free=free | np.array([False] * 4 + [True])), given)


def _starts(alpha: float | None, offset: float | None) -> np.ndarray:
    """Starting points, where what is given has its value."""
    floors = [-0.1, -0.5, -1.5] if offset is None else [math.log(offset) if offset else AWAY - 1]
    exponents = [0.05, 0.1, 0.2, 0.5] if alpha is None else [alpha]
    return np.array([(-1.0, b, s, e, 0.0) for b in exponents for s in (-0.1, 0.0, 0.1) for e in floors])


def judged(both: Ladders, point: np.ndarray, loss: np.ndarray) -> tuple[str, ...]:
    """What the numbers at this point cannot say; where alpha and the offset come from, as the speed-up is of them."""
    notes, found = list(both.given), both.problem.read(point)
    if math.isnan(found.alpha):
        notes.append("the loss does not fall with compute in these runs, so there is no speed-up")
    elif both.problem.free[3] and found.offset < NOTHING * loss.min():
        notes.append("the offset is at its bound 0: the runs do not show where the fall ends")
    left = both.problem.model(point[None])[0][0] - np.log(loss)
    apart = far_off(left, int(both.problem.free.sum()), {"x": both.compute, "loss": loss})
    return (*notes, *apart, *_shared(both, point, np.log(loss)))


def _shared(both: Ladders, point: np.ndarray, ln_loss: np.ndarray) -> tuple[str, ...]:
    """A sentence where two exponents fit the ladders so much better than one that the speed-up depends on compute."""
    freedom = len(ln_loss) - int(both.own.free.sum())
    if freedom < 1:
        return ()
    once = np.ones((1, len(ln_loss)))
    own = descend(both.own.model, ln_loss, point[None], once, both.own.free, both.own.delta)[0][0]
    one, two = (float(((both.own.model(p[None])[0][0] - ln_loss) ** 2).sum()) for p in (point, own))
    if two >= one or by_chance(two, one, 1, freedom) > CHANCE:
        return ()
    which = "grows" if own[4] > 0 else "shrinks"
    return (f"the ladders do not share an exponent: the speed-up {which} with compute, and this is about its mean",)
