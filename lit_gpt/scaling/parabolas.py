"""Whether parabolas are the shape of their runs: one run that stands apart, and sides that are not alike.

The losses of a sweep rise faster on one side than on the other, and near the end of a sweep a run may have diverged.
A parabola goes on having a lowest point then, in another place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lit_gpt.scaling._fit_data import ROUNDING, by_chance, outliers

CHANCE = 0.01  # of the test whether both sides are alike
APART = 1e-9  # distance of a leverage from 1; at 1 the parabola goes through the run, whatever its loss is


def misshapen(
    parts: Sequence[np.ndarray], ln_setting: np.ndarray, loss: np.ndarray, places: Mapping[str, np.ndarray], what: str
) -> tuple[str, ...]:
    """Sentences on a parabola in ln_setting for each part of the runs, where noise does not explain what it leaves.

    parts: the runs of each parabola, (runs,) booleans or places. ln_setting, loss, places: (runs,). places: symbol ->
    what a run is called by. what: what is swept, in the plural, such as "settings". Both tests are of one more number
    for all parabolas together: the loss of a single run, and a cubic term (an F test). The first sentence alone where
    there is one, as a single run may look like a side.
    """
    freed, cubic, leverage, rows = [], [], [], []
    for part in parts:
        away = ln_setting[part] - ln_setting[part].mean()
        q, _ = np.linalg.qr(np.vander(away, 3))
        own, third = loss[part], away**3
        freed.append(own - q @ (q.T @ own))
        cubic.append(third - q @ (q.T @ third))
        leverage.append((q**2).sum(1))
        rows.append(np.arange(len(loss))[part])
    if not rows:
        return ()
    left, bent, held, at = (np.concatenate(values) for values in (freed, cubic, leverage, rows))
    error, numbers = float(left @ left), 3 * len(parts)
    if len(left) <= numbers or error <= len(left) * (ROUNDING * float(np.abs(loss[at]).mean())) ** 2:
        return ()
    room = 1 - held
    gained = np.where(room > APART, left**2 / np.maximum(room, APART), 0.0)
    said = outliers({name: column[at] for name, column in places.items()}, error, error - gained, numbers)
    return said or _sides(left, bent, error, numbers, what)


def _sides(left: np.ndarray, bent: np.ndarray, error: float, numbers: int, what: str) -> tuple[str, ...]:
    """left, bent: what the parabolas leave of the losses and of the cube of the setting, (runs,)."""
    freedom, size, along = len(left) - numbers - 1, float(bent @ bent), float(bent @ left)
    if freedom < 1 or size <= ROUNDING:
        return ()
    if by_chance(max(error - along**2 / size, 0.0), error, 1, freedom) > CHANCE:
        return ()
    side = "large" if along > 0 else "small"
    return (
        f"the losses rise faster towards {side} {what} than parabolas do, which moves the optima: leave out the runs "
        "farthest from the best ones",
    )
