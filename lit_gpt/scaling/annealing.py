"""The loss of a run at every step from its learning rates (arXiv:2408.11029, Tissue et al.): L0 + A S1^-alpha - C S2.

S1 is the sum of the rates so far. S2 is the sum of m_i = lambda m_(i-1) + (rate_(i-1) - rate_i): what the rate has
fallen, which acts on the loss with a delay. In the warm-up both take the rate for its peak, as the authors' code does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import by_chance, positive
from lit_gpt.scaling.descent import descend

DELAY = 0.999  # lambda of the paper, whose runs have tens of thousands of steps
SPANS = 1, 3, 10, 30, 100, 300, 1000, 3000, 10000  # steps that a fall of the rate acts for, 1 / (1 - lambda), to try
PEAK = 0.999  # share of the highest rate from which the warm-up is over
POINTS, RANGE = 20, 4.0  # least number of points after the warm-up, and least ratio of their last S1 to the first
EXPONENTS = np.geomspace(0.01, 4.0, 121)
ROUNDS = 4  # of a finer search between the neighbours of the best exponent
ALIKE = 1.0  # of the statistic of Durbin and Watson: half of what noise alone gives
EXACT = 1e-6  # share of the loss below which residuals are rounding
SEEN = 0.01  # a C that noise alone would improve the fit by in more than this share of cases is not known


@dataclass(frozen=True)
class Annealing:
    """Loss from S1 and S2. notes: what the numbers cannot say.

    Where the runs have not shown C it is NaN: no effect up to the S2 that they have `seen`, an unknown one beyond it.
    delay: lambda of the S2 that it is of.
    """

    L0: float
    A: float
    alpha: float
    C: float
    seen: float = 0.0
    delay: float = DELAY
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, s1: np.ndarray, s2: np.ndarray) -> np.ndarray:
        annealed = np.where(s2 > self.seen, np.nan, 0.0) if np.isnan(self.C) else self.C * s2
        return self.L0 + self.A * s1**-self.alpha - annealed


def areas(steps: np.ndarray, rate: np.ndarray, delay: float = DELAY) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S1, S2 and whether the warm-up is over, at logged steps of one run; (n,) each.

    steps: rising. Between logged steps the rate is a straight line. Raises UserError for a delay outside [0, 1).
    """
    if not 0 <= delay < 1:
        raise UserError(f"lambda is {delay:g}; give a number from 0 to below 1, such as {DELAY}.")
    over = np.maximum.accumulate(rate >= PEAK * rate.max())
    rate = np.where(over, rate, rate.max())
    count = np.diff(steps, prepend=0.0)
    before = np.r_[rate[0], rate[:-1]]
    s1 = np.cumsum(count * (before + rate) / 2 + (rate - before) / 2)
    fall, kept = (before - rate) / np.maximum(count, 1.0), delay**count
    moment, total, s2 = 0.0, 0.0, np.zeros(len(steps))
    for i in range(len(steps)):  # sums over the steps between two logged ones, in closed form
        series = delay * (1 - kept[i]) / (1 - delay)
        total += moment * series + fall[i] * (count[i] - series) / (1 - delay)
        moment = kept[i] * moment + fall[i] * (1 - kept[i]) / (1 - delay)
        s2[i] = total
    return s1, s2, over


def fit_annealing(s1: np.ndarray, s2: np.ndarray, loss: np.ndarray, known: float | None = None) -> Annealing:
    """Least squares of the loss in relative units, with L0, A, C >= 0.

    known: C from another run. For a given alpha the rest is linear, so that a scan finds the global optimum. Raises
    UserError for curves that are too short to say where they go.
    """
    s1, loss = positive(2, S1=s1, loss=loss)
    if len(loss) < POINTS or s1.max() < RANGE * s1.min():
        raise UserError(
            f"A curve of {len(loss)} points whose sum of rates grows {s1.max() / s1.min():.3g}-fold after the warm-up "
            f"is too short. Wait for {POINTS} points and {RANGE:g} times the sum, or log more often."
        )
    unit, weight = float(np.exp(np.log(s1).mean())), 1 / loss
    area = float(s2.max()) if s2.max() > 0 else 1.0
    target = weight * (loss + (known or 0.0) * s2)
    bends = known is None and s2.max() > 0
    alpha, numbers, error = _scan(s1 / unit, s2 / area, weight, target, bends)
    notes = list[str]()
    if known is not None:
        c = known
    elif not bends or _by_noise(error, _scan(s1 / unit, s2 / area, weight, target, False)[2], len(loss) - 4):
        c = np.nan
        notes.append(
            "the rate has not fallen enough in these steps to show what its fall does, so C and the loss after it are "
            "not known: give C of a similar run that has ended (--fix C=), or wait"
        )
        alpha, numbers, error = _scan(s1 / unit, s2 / area, weight, target, False)
    else:
        c = numbers[2] / area
    if alpha in (EXPONENTS[0], EXPONENTS[-1]):
        notes.append("alpha is at the end of its range: the curve does not show where it goes")
    law = Annealing(float(numbers[0]), float(numbers[1] * unit**alpha), float(alpha), float(c), float(s2.max()))
    left = law(s1, s2) / loss - 1
    if np.abs(left).max() > EXACT and (watson := durbin_watson(left)) < ALIKE:
        notes.append(
            f"neighbouring steps err alike (Durbin-Watson {watson:.2f}; noise alone gives 2): this law does not "
            "describe these steps, so do not trust what it says of others. It needs runs of thousands of steps"
        )
    if numbers[1] == 0:
        notes.append("A is at its bound 0: the loss of these steps does not fall with the sum of rates")
    elif numbers[0] == 0:
        notes.append("L0 is at its bound 0: the curve does not show where it ends")
    return replace(law, notes=tuple(notes))


def durbin_watson(residual: np.ndarray) -> float:
    """Mean square of the steps from one residual to the next over that of the residuals (Durbin and Watson 1950)."""
    return float((np.diff(residual) ** 2).sum() / max(float((residual**2).sum()), 1e-300))


def refit(
    near: Annealing, s1: np.ndarray, s2: np.ndarray, loss: np.ndarray, counts: np.ndarray, known: bool
) -> tuple[list[Annealing], np.ndarray]:
    """The law of many sets of data, from that of a similar one; loss, counts: (sets, points), see law.Law.many.

    known: whether C was given. What is at a bound or open in the similar law stays so. Also returns squared errors,
    (sets,).
    """
    ln_s1, bends = np.log(s1), not (known or np.isnan(near.C))
    free = np.array([near.L0 > 0, near.A > 0, near.A > 0, bends])

    def model(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
        floor, factor, alpha, c = (points[:, i, None] for i in range(4))
        rest, fall = np.exp(floor) + 0 * ln_s1, np.exp(factor - alpha * ln_s1)
        return rest + fall - c * s2, np.stack([rest, fall, -fall * ln_s1, 0 * fall - s2], -1), None

    start = np.array([np.log(max(near.L0, 1e-300)), np.log(max(near.A, 1e-300)), near.alpha, np.nan_to_num(near.C)])
    starts = np.repeat(start[None], len(loss), axis=0)
    points, errors = descend(model, loss, starts, counts / loss.mean(0) ** 2, free)
    floors = np.exp(points[:, 0]) if near.L0 > 0 else np.zeros(len(points))
    c = points[:, 3] if bends else np.full(len(points), near.C)
    return [
        replace(near, L0=float(f), A=float(np.exp(p[1])), alpha=float(p[2]), C=float(own), notes=())
        for f, p, own in zip(floors, points, c)
    ], errors


def _by_noise(error: float, without: float, freedom: int) -> bool:
    return error >= without or by_chance(error, without, 1, max(freedom, 1)) > SEEN


def _scan(
    s1: np.ndarray, s2: np.ndarray, weight: np.ndarray, target: np.ndarray, bends: bool
) -> tuple[float, np.ndarray, float]:
    """The best exponent, its (L0, A, C) and squared error. bends: whether C is free, or 0."""
    exponents, found = EXPONENTS, (0.0, np.zeros(3), np.inf)
    for _ in range(ROUNDS):
        columns = [np.ones((len(exponents), len(s1))), s1 ** -exponents[:, None]]
        columns += [np.broadcast_to(-s2, columns[0].shape)] if bends else []
        numbers, errors = bounded(np.stack(columns, -1) * weight[:, None], target)
        best = int(np.argmin(errors))
        found = float(exponents[best]), np.r_[numbers[best], np.zeros(3 - numbers.shape[1])], float(errors[best])
        exponents = np.geomspace(exponents[max(best - 1, 0)], exponents[min(best + 1, len(exponents) - 1)], 41)
    return found


def bounded(columns: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares with factors >= 0, (sets, k), and squared errors (sets,), of columns (sets, n, k).

    The best of all sets of factors that are not at the bound, which is exact as the problem is convex.
    """
    normal, pull = np.einsum("sni,snj->sij", columns, columns), np.einsum("sni,n->si", columns, target)
    k = columns.shape[-1]
    best, least = np.zeros((len(columns), k)), np.full(len(columns), float(target @ target))
    for some in (list(c) for size in range(1, k + 1) for c in combinations(range(k), size)):
        block = normal[:, some][:, :, some] + 1e-14 * np.eye(len(some)) * normal[:, some, some].mean(-1)[:, None, None]
        found = np.linalg.solve(block, pull[:, some, None])[..., 0]
        errors = ((np.einsum("sni,si->sn", columns[..., some], found) - target) ** 2).sum(-1)
        better = (found >= 0).all(-1) & (errors < least)
        least = np.where(better, errors, least)
        best[better] = 0.0
        best[np.ix_(better, some)] = found[better]
    return best, least
