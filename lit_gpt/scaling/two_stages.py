"""From a soft figure of a task (the log-likelihood of right answers) to a hard one (accuracy), by a sigmoid."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lit_gpt.errors import UserError
from lit_gpt.scaling._fit_data import positive
from lit_gpt.scaling.descent import descend

GRID, ROUNDS = 41, 12  # points a side, and rounds in which the grid shrinks around the best point
SHRINK = 0.25  # of the sides from one round to the next
CHANCE = 0.02  # accuracies that are all within this of the floor say nothing about the sigmoid


@dataclass(frozen=True)
class Sigmoid:
    """hard = floor + (top - floor) / (1 + exp(slope (soft - middle))). notes: what the numbers cannot say."""

    slope: float
    middle: float
    floor: float
    top: float = 1.0
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __call__(self, soft: np.ndarray | float) -> np.ndarray:
        share = 1 / (1 + np.exp(np.clip(self.slope * (np.asarray(soft, float) - self.middle), -700, 700)))
        return self.floor + (self.top - self.floor) * share


def fit_sigmoid(soft: np.ndarray, hard: np.ndarray, floor: float | None = None, top: float = 1.0) -> Sigmoid:
    """Least squares of hard. floor: accuracy by chance, such as 0.25 of four answers; None finds it in [0, least hard].

    soft falls as hard rises. Raises UserError for fewer than three runs, accuracies that are not from 0 to 1, and a
    figure that does not rise as the other falls.
    """
    soft, _ = positive(3, soft=soft, hard=np.ones_like(np.asarray(soft, float)))
    hard = np.asarray(hard, dtype=np.float64)
    if not ((hard >= 0) & (hard <= 1)).all():
        raise UserError(f"An accuracy is from 0 to 1, got {hard.tolist()}.")
    if floor is not None and not 0 <= floor < top:
        raise UserError(f"The floor is {floor:g}; give the accuracy of guessing, such as 0.25 of four answers.")
    if np.corrcoef(soft, hard)[0, 1] >= 0:
        raise UserError("The accuracy does not rise as the other figure falls. Give a loss or negative log-likelihood.")
    middle, width = float(soft.mean()), float(np.ptp(soft))
    center, side, found = np.array([np.log(4 / width), middle]), np.array([4.0, 3 * width]), 0.0
    for _ in range(ROUNDS):
        slopes = np.exp(center[0] + side[0] * np.linspace(-1, 1, GRID))
        middles = center[1] + side[1] * np.linspace(-1, 1, GRID)
        errors, floors = _errors(soft, hard, slopes[:, None, None], middles[None, :, None], floor, top)
        i, j = np.unravel_index(int(np.argmin(errors)), errors.shape)
        center, side, found = np.array([np.log(slopes[i]), middles[j]]), side * SHRINK, float(floors[i, j])
    notes = _notes(soft, hard, float(center[1]), found)
    return Sigmoid(float(np.exp(center[0])), float(center[1]), found, top, notes)


def refit(near: Sigmoid, soft: np.ndarray, hard: np.ndarray, counts: np.ndarray, pinned: bool) -> list[Sigmoid]:
    """The sigmoid of many sets of data, from that of a similar one; hard, counts: (sets, runs), see law.Law.many.

    pinned: whether the floor was given; one that is at its bound 0 stays there.
    """

    def model(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, None]:
        ln_slope, middle, floor = (points[:, i, None] for i in range(3))
        at = np.exp(ln_slope) * (soft - middle)
        share = 1 / (1 + np.exp(np.clip(at, -700, 700)))
        bend = (near.top - floor) * share * (1 - share)
        slopes = np.stack([-bend * at, bend * np.exp(ln_slope), 1 - share], -1)
        return floor + (near.top - floor) * share, slopes, None

    start = np.array([np.log(near.slope), near.middle, near.floor])
    free = np.array([True, True, not pinned and near.floor > 0])
    points, _ = descend(model, hard, np.repeat(start[None], len(hard), axis=0), counts, free)
    return [Sigmoid(float(np.exp(p[0])), float(p[1]), float(p[2]), near.top) for p in points]


def _errors(
    soft: np.ndarray, hard: np.ndarray, slope: np.ndarray, middle: np.ndarray, floor: float | None, top: float
) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors and best floors on the grid; the floor is linear in what is left, so that clipping it is exact."""
    share = 1 / (1 + np.exp(np.clip(slope * (soft - middle), -700, 700)))
    rest = 1 - share
    best = (rest * (hard - top * share)).sum(-1) / np.maximum((rest**2).sum(-1), 1e-12)
    floors = np.clip(best, 0.0, hard.min()) if floor is None else np.full_like(best, floor)
    return ((top * share + floors[..., None] * rest - hard) ** 2).sum(-1), floors


def _notes(soft: np.ndarray, hard: np.ndarray, middle: float, floor: float) -> tuple[str, ...]:
    notes = list[str]()
    if hard.max() < floor + CHANCE:
        notes.append("no accuracy is above chance, so the sigmoid is not known: add larger models")
    if not soft.min() <= middle <= soft.max():
        notes.append(
            "the middle of the sigmoid lies outside the runs, so its steepness and ends are hardly known: add runs on "
            "the other side of it"
        )
    return tuple(notes)
