"""How much less compute one ladder needs than another for the same loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import by_chance, positive
from lit_gpt.scaling.sums import HUBER_DELTA, fit_sum, log_sums

CHANCE = 0.01  # of the test of one exponent for both ladders
NOTHING = 1e-6  # share of the loss below which the offset is none
AWAY = -50.0  # ln of an offset that is none


def effective_speed_up(worse: float, better: float, alpha: float, offset: float) -> float:
    """((L_worse - L0) / (L_better - L0))^(1 / alpha): the compute that the worse of two equally dear runs lacks.

    alpha, offset: of L = L0 + A C^-alpha, which both share. Raises UserError for a loss that is not above the offset.
    """
    if min(worse, better) <= offset:
        raise UserError(f"A speed-up needs losses above the offset {offset:g}, got {worse:g} and {better:g}.")
    return ((worse - offset) / (better - offset)) ** (1 / alpha)


@dataclass(frozen=True)
class SpeedUp:
    """L = offset + factor (s C)^-alpha with s = 1 for the baseline and s = speed_up for the variant."""

    speed_up: float
    alpha: float
    offset: float
    factor: float
    free: int = 4
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, compute: np.ndarray, variant: np.ndarray) -> np.ndarray:
        return self.offset + self.factor * (compute * self.speed_up**variant) ** -self.alpha


def fit_speed_up(
    compute: np.ndarray,
    variant: np.ndarray,
    loss: np.ndarray,
    alpha: float | None = None,
    offset: float | None = None,
) -> SpeedUp:
    """One law for both ladders by Huber(0.01) of ln(loss). variant: 0 of the baseline's runs, 1 of the others.

    alpha, offset: where they are known from elsewhere. Raises UserError for ladders that are not two, fewer runs than
    numbers, and losses that are not above a given offset.
    """
    compute, loss = positive(2, compute=compute, loss=loss)
    variant = np.asarray(variant, dtype=np.float64)
    if set(variant.tolist()) != {0.0, 1.0}:
        raise UserError("A speed-up is of two ladders. Give runs of a baseline and of one variant, and no others.")
    if offset is not None and not 0 <= offset < loss.min():
        raise UserError(f"The offset {offset:g} is not below every loss, the least is {loss.min():.4g}. Give less.")
    middle = float(np.log(compute).mean())
    u, one, zero = np.log(compute) - middle, np.ones_like(loss), np.zeros_like(loss)
    # numbers: ln A at the middle, alpha, alpha ln(speed_up), ln L0, and how much the variant's alpha is larger
    terms = np.stack([np.stack([one, -u, -variant, zero, -u * variant], 1), np.stack([zero, zero, zero, one, zero], 1)])
    free = np.array([True, alpha is None, True, offset is None, False])
    starts = _starts(float(np.log(loss).mean()), alpha, offset)
    point = fit_sum(terms, np.log(loss), starts, HUBER_DELTA, free)
    notes = [*_given(alpha, offset), *_shared(terms, np.log(loss), point, free)]
    floor = math.exp(point[3]) if point[3] > AWAY else 0.0
    if offset is None and floor < NOTHING * loss.min():
        floor = 0.0
        notes.append("the offset is at its bound 0: the runs do not show where the fall ends")
    if point[1] <= 1e-3:
        notes.append("the loss does not fall with compute in these runs, so there is no speed-up")
        return SpeedUp(math.nan, math.nan, math.nan, math.nan, int(free.sum()), tuple(notes))
    exponent = float(point[1])
    factor = math.exp(point[0] + exponent * middle)
    return SpeedUp(math.exp(point[2] / exponent), exponent, floor, factor, int(free.sum()), tuple(notes))


def _starts(level: float, alpha: float | None, offset: float | None) -> np.ndarray:
    """Starting points, where what is given has its value."""
    floors = [math.log(offset) if offset else AWAY] if offset is not None else [level - x for x in (0.1, 0.5, 1.5)]
    exponents = [alpha] if alpha is not None else [0.05, 0.1, 0.2, 0.5]
    return np.array([(level - 1.0, b, s, e, 0.0) for b in exponents for s in (-0.1, 0.0, 0.1) for e in floors])


def _given(alpha: float | None, offset: float | None) -> list[str]:
    """Where alpha and the offset come from, as every speed-up depends on them."""
    parts = (("alpha", alpha), ("the offset", offset))
    return [f"{name} is {'fitted to both ladders' if value is None else 'given'}" for name, value in parts]


def _shared(terms: np.ndarray, ln_loss: np.ndarray, point: np.ndarray, free: np.ndarray) -> list[str]:
    """A sentence where two exponents fit the ladders so much better than one that the speed-up depends on compute."""
    more = free | np.array([False, False, False, False, True])
    freedom = len(ln_loss) - int(more.sum())
    if freedom < 1:
        return []
    own = fit_sum(terms, ln_loss, point[None], HUBER_DELTA, more)
    one, two = (float(((log_sums(p[None], terms)[0][0] - ln_loss) ** 2).sum()) for p in (point, own))
    if two >= one or by_chance(two, one, 1, freedom) > CHANCE:
        return []
    which = "grows" if own[4] > 0 else "shrinks"
    return [f"the ladders do not share an exponent: the speed-up {which} with compute, and this is about its mean"]
