"""What every fit asks of its data: numbers that can be fitted, and whether one point stands apart from the rest."""

from __future__ import annotations

import math

import numpy as np

from lit_gpt.errors import UserError

SIGNIFICANCE = 0.01  # of the outlier test, over all points together
ROUNDING = 1e-9  # residuals below this share of y are no noise but rounding


def positive(need: int, **columns: np.ndarray) -> list[np.ndarray]:
    """The columns as float64, of one length, finite and positive, with `need` different values in each.

    Raises UserError, with the column's name.
    """
    found = {name: np.asarray(column, dtype=np.float64) for name, column in columns.items()}
    lengths = {name: column.shape for name, column in found.items()}
    if len(set(lengths.values())) > 1 or any(column.ndim != 1 for column in found.values()):
        raise UserError(f"A fit needs one number of each kind per run, got {lengths}.")
    for name, column in found.items():
        if not (np.isfinite(column) & (column > 0)).all():
            raise UserError(f"A fit needs finite positive numbers, got {name} = {column.tolist()}.")
    for name, column in list(found.items())[:-1]:  # the last one is what is explained
        if len(np.unique(column)) < need:
            raise UserError(f"This fit needs {need} different {name}, got {sorted(set(column.tolist()))}. Add runs.")
    return list(found.values())


def outliers(x: np.ndarray, y: np.ndarray, error: float, without: np.ndarray, parameters: int) -> tuple[str, ...]:
    """A sentence on the point that stands apart most, if one does.

    error: squared error of the fit to all n points, without: (n,), of the fits that leave out each. Leaving one out is
    giving it a parameter of its own, so (error - without) / (without / (n - 1 - parameters)) is the square of its
    Student t (Cook and Weisberg 1982, section 2.2.2), which must be beyond chance among n points.
    """
    freedom = len(y) - 1 - parameters
    if freedom < 1:
        return ()
    i = int(np.argmin(without))
    noise = max(float(without[i]) / freedom, float(np.mean(y) * ROUNDING) ** 2)
    t = math.sqrt(max(error - float(without[i]), 0.0) / noise)
    if len(y) * _student(t, freedom) > SIGNIFICANCE:
        return ()
    return (
        f"one run is an outlier: x = {x[i]:g}, y = {y[i]:g} ({t:.3g} standard deviations). Check it, or leave it out",
    )


def _student(t: float, freedom: int) -> float:
    """P(|T| > t) of Student's t: with T = sqrt(freedom) tan(u) its density is cos(u)^(freedom - 1)."""
    u = np.linspace(0, np.pi / 2, 4001)
    density = np.cos(u) ** (freedom - 1)
    tail = np.where(u >= math.atan(t / math.sqrt(freedom)), density, 0.0)
    return float(tail.sum() / density.sum())
